"""Keys that EST delivers are nowhere else: no file, log or database, no memory of the service (SPEC B7)."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from tests.support.enrolling import Bench, device_realm, est, openssl
from tests.support.server import Server, group_members
from tests.system.test_est import bootstrap, identifier_of, parts, sealing
from tests.system.test_planted_keys import files_below, found_in, found_in_memory, memory_of

RUN = "RUN-2"


def scalar(private: bytes) -> bytes:
    key = load_der_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(32, "big")


def test_a_key_that_was_delivered_is_nowhere_else(tmp_path: Path) -> None:
    plane = device_realm(tmp_path / "served" / "realm")
    plane.realm.open_run(RUN, 100, "--delivered")
    benches = [Bench(folder=tmp_path, name=name) for name in ("D1", "D2")]
    held = [bootstrap(plane, bench) for bench in benches]
    with Server(realm=plane.realm) as server:
        plain = est(plane, f"{RUN}/serverkeygen", benches[0].request(), who=held[0])
        sealed = est(plane, f"{RUN}/serverkeygen", sealing(benches[1], identifier_of(held[1])), who=held[1])
        (_, private), _ = parts(plain)
        (_, envelope), _ = parts(sealed)
        opened = openssl(
            "cms", "-decrypt", "-inform", "DER", "-recip", held[1].certificate, "-inkey", held[1].key,
            told=envelope,
        )  # fmt: skip
        # Within SignedData: ECPrivateKey (RFC 5915), version 1 and then the scalar.
        at = opened.index(b"\x02\x01\x01\x04\x20") + 5
        keys = {"in the clear": scalar(private), "sealed": opened[at : at + 32]}
        memory = {str(pid): memory_of(pid) for pid in group_members(server.pid)}
        there = b"application/pkcs8"
        assert any(there in octets for octets in memory.values()), "the search finds what is there"
        for octets in memory.values():
            assert found_in_memory(octets, keys) == []
        assert server.stop() == 0
    places = dict(files_below(tmp_path / "served"))
    assert any(b"device-issued" in octets for octets in places.values())
    assert found_in(places, keys) == []
    plane.realm.check()
