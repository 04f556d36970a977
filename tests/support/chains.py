"""A certification path for every packaged profile, made as the service makes it: for oracles and peers.

``chain_of("matter-dac")`` is a root, the authorities below it and one certificate with its private key, each
issued through template or ceremony, permitted by lint and signed.  The same call gives the same path as long
as the process lives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise

from birthmark.pki import issuance, lint, profiles
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.profiles import Profile, ProfileKind
from tests.pki.sample import FOUNDED, NOW, VARIABLES, PrivateKey, private_key, serial, signed_by, spki

__all__ = ["LOCATIONS", "Chain", "chain_of", "variables_of"]

EUI_64, PCID, SYSTEM_TITLE = "00173B0000000001", "WAUB0000000000001", "4D4D4D0000000001"

LOCATIONS = {
    "crl_url": "http://pki.example/crl/1.crl",
    "ocsp_url": "http://pki.example/ocsp",
    "issuer_url": "http://pki.example/ca/1.cer",
}
"""For a realm with a public place for revocation."""

_HARDWARE_IDS = {"iso15118": PCID, "wisun": EUI_64, "dlms": SYSTEM_TITLE}


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A certification path, every certificate in DER."""

    root_der: bytes
    intermediates: tuple[bytes, ...]
    """The authorities between root and leaf, the one nearest to the leaf first."""
    leaf_der: bytes
    """The certificate of the profile asked for; of a root it is ``root_der``."""
    leaf_key: PrivateKey
    profiles: tuple[str, ...]
    """Names of the profiles, from the leaf's to the root's."""
    issuers: tuple[Issuer, ...]
    """The authorities from the one that issued the leaf to the root; of a root none."""
    issuer_keys: tuple[PrivateKey, ...]
    """Their private keys."""


def variables_of(profile_name: str) -> dict[str, str]:
    """Return good values of every variable for a profile; without locations of revocation."""
    family = profile_name.partition("-")[0]
    values = VARIABLES | {
        "hardware_id": _HARDWARE_IDS.get(family.removesuffix("2"), VARIABLES["hardware_id"])
    }
    if family == "iso15118":
        values |= {"country": "DE"}
    return values


def chain_of(
    profile_name: str,
    *,
    algorithm: KeyAlgorithm | None = None,
    variables: Mapping[str, str] | None = None,
    not_before: datetime = NOW,
) -> Chain:
    """Return a path whose last certificate is of this profile.

    Args:
        profile_name: of a packaged profile.
        algorithm: of the leaf's key; the profile's first if left out.  The authorities have the same where
            their profiles let them, else the first that may sign it.
        variables: changes to ``variables_of`` for every certificate of the path, such as ``LOCATIONS``.
        not_before: of the leaf.
    """
    return _chain(profile_name, algorithm, tuple(sorted((variables or {}).items())), not_before)


@lru_cache(maxsize=256)
def _chain(
    profile_name: str,
    algorithm: KeyAlgorithm | None,
    changes: tuple[tuple[str, str], ...],
    not_before: datetime,
) -> Chain:
    profile = profiles.load(profile_name)
    own = algorithm or profile.subject_key_algorithms[0]
    names = _path(profile)
    values = [variables_of(name) | {"authority": f"Example {name}"} | dict(changes) for name in names]
    if "intermediate" in names:
        values[-1] |= {"path_len": "2"}
    algorithms = _algorithms([profiles.load(name) for name in names], own)
    issuer: Issuer | None = None
    issuers: list[Issuer] = []
    certificates: list[bytes] = []
    for place in reversed(range(len(names))):
        at = not_before if place == 0 and len(names) > 1 else FOUNDED
        der = _issued(profiles.load(names[place]), issuer, issuers, algorithms[place], values[place], at)
        certificates.insert(0, der)
        if place > 0:
            issuer = Issuer.from_certificate(
                _label(names[place]), der, above=certificates[1:], profile=names[place]
            )
            issuers.insert(0, issuer)
    return Chain(
        root_der=certificates[-1],
        intermediates=tuple(certificates[1:-1]),
        leaf_der=certificates[0],
        leaf_key=private_key(own, _label(names[0])),
        profiles=tuple(names),
        issuers=tuple(issuers),
        issuer_keys=tuple(
            private_key(kind, _label(name)) for kind, name in zip(algorithms[1:], names[1:], strict=True)
        ),
    )


def _path(profile: Profile) -> list[str]:
    names = [profile.name]
    while not profile.self_signed:
        usual = "root" if profile.kind is ProfileKind.AUTHORITY else "issuing"
        profile = profiles.load(profile.issued_by[0] if profile.issued_by else usual)
        names.append(profile.name)
    return names


def _algorithms(path: list[Profile], own: KeyAlgorithm) -> list[KeyAlgorithm]:
    found = [own]
    for below, above in pairwise(path):
        subject = found[-1]
        candidates = [
            kind
            for kind in (subject, *above.subject_key_algorithms)
            if kind in above.subject_key_algorithms
            and (not below.issuer_key_algorithms or kind in below.issuer_key_algorithms)
            and (
                not below.issuer_at_least_as_strong
                or ALGORITHMS[kind].strength >= ALGORITHMS[subject].strength
            )
        ]
        found.append(candidates[0])
    return found


def _label(name: str) -> KeyLabel:
    return KeyLabel(f"chain-{name}")


def _issued(
    profile: Profile,
    issuer: Issuer | None,
    issuers: list[Issuer],
    algorithm: KeyAlgorithm,
    variables: Mapping[str, str],
    not_before: datetime,
) -> bytes:
    label = _label(profile.name)
    key = spki(algorithm, label)
    number = serial(f"{profile.name}, {algorithm}")
    if issuer is None:
        tbs = issuance.build_root(
            profile,
            key_label=label,
            serial_number=number,
            subject_public_key_info=key,
            not_before=not_before,
            variables=variables,
        )
        signer = private_key(algorithm, label)
    else:
        signer = private_key(issuer.key_algorithm, issuers[0].key_label)
        if profile.is_ca:
            tbs = issuance.build_reference(
                profile,
                issuer,
                serial_number=number,
                subject_public_key_info=key,
                not_before=not_before,
                variables=variables,
            )
        else:
            constants = {name: text for name, text in variables.items() if name != "hardware_id"}
            tbs = issuance.compile_template(profile, issuer, constants).fill(
                serial_number=number,
                subject_public_key_info=key,
                not_before=not_before,
                variables={"hardware_id": variables["hardware_id"]},
            )
    return issuance.sign_certificate(lint.permit(tbs), lambda _, message: signed_by(signer, message))
