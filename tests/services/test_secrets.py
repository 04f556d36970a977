"""Private keys of devices are nowhere but in the answer that delivers them (SPEC B7)."""

import base64
import json
import logging
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from birthmark import errors
from birthmark.adapters.sql.database import Database
from birthmark.services.issue import Issued
from tests.support.faults import Failing, Fault
from tests.support.realm import Line, proof, workpiece


def spellings(issued: Issued) -> list[bytes]:
    """Return everything that would give the key away: PKCS#8 and the bare scalar, raw, in hex, in base64."""
    assert issued.private_key is not None
    pkcs8 = issued.private_key.reveal()
    key = load_der_private_key(pkcs8, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    scalar = key.private_numbers().private_value
    raw = scalar.to_bytes(32)
    found = [pkcs8, raw, raw.hex().encode(), raw.hex().upper().encode(), str(scalar).encode()]
    # base64 depends on where the octets begin: a stretch in the middle shows in one of three ways
    found += [base64.b64encode(raw[shift : shift + 27]) for shift in range(3)]
    return [*found, pkcs8.hex().encode(), base64.b64encode(pkcs8)]


def test_a_delivered_key_is_in_no_file_log_or_message(
    small_line: Line, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    line, failing, said = small_line, [], []
    logging.getLogger("birthmark").setLevel(logging.DEBUG)

    def wrap(database: Database) -> Database:
        failing.append(Failing(database))
        return failing[0]

    service = line.another_service(wrap=wrap)
    device = workpiece("D1", delivered=True)
    keys = [line.issue(device, key="k", service=service)]
    for fault in Fault:
        failing[0].fault = fault
        with pytest.raises(errors.Unavailable) as caught:
            line.issue(device, key="k", service=service)
        said.append("".join(traceback.format_exception(caught.value)))
        keys.append(line.issue(device, key="k", service=service))
    said += [repr(keys), str(keys), f"{keys[-1]}", repr(keys[-1].private_key)]
    line.prove(proof(keys[-1], device.key), service=service)
    with pytest.raises(errors.IllegalTransition) as refused:
        line.issue(device, key="k")
    said += ["".join(traceback.format_exception(refused.value)), caplog.text, json.dumps(line.entries())]
    line.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    content = b"\x00".join([*(path.read_bytes() for path in files), *(text.encode() for text in said)])
    assert keys[0].certificate in content, "the scan sees what is stored"
    for issued in keys:
        for spelling in spellings(issued):
            assert spelling not in content
