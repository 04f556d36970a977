"""What an EST service wants a request to be like: CsrAttrs (RFC 7030 section 4.5.2, RFC 9908 section 3).

It is said in both ways there are: as the list of RFC 7030, with values, for clients that know nothing else,
and as the template of RFC 9908 section 3.4, which clients that know it use alone (section 4).

- The key algorithm is the profile's first, because neither way can offer a choice; a request with another
  that the profile allows is as good.
- The subject is given, but for what comes with each device: that is the client's to say, so that a use case
  can compare it with the device it admitted.
- Extensions are given with their values, by id-ExtensionReq.  id-aa-extensionReqTemplate is for values that
  the client fills in, and there are none: what stands in a certificate comes from records (SPEC C8).  For the
  same reason an alternative name is not asked for before its device is known.  Neither is what follows from
  the authority: locations and key identifiers.
- A challengePassword is not asked for: TLS 1.3 has no tls-unique to stand in it (RFC 7030 section 3.5).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.issuance import constant_extension
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.names import ATTRIBUTES, encode_attribute
from birthmark.pki.profilelanguage import DEVICE_VARIABLES, Extension, Profile, SubjectAttribute

__all__ = ["asked_extensions", "asked_subject", "csr_attributes"]

_EXTENSION_REQUEST = der.oid("1.2.840.113549.1.9.14")
_INFO_TEMPLATE = der.oid("1.2.840.113549.1.9.16.2.61")
"""id-aa-certificationRequestInfoTemplate (RFC 9908 appendix A)."""
_SUBJECT_KEY, _REQUEST_ATTRIBUTES = 0xA0, 0xA1

_ASKED_FOR = (
    Extension.BASIC_CONSTRAINTS,
    Extension.KEY_USAGE,
    Extension.EXTENDED_KEY_USAGE,
    Extension.SUBJECT_ALTERNATIVE_NAME,
    Extension.CERTIFICATE_POLICIES,
)


def csr_attributes(profile: Profile, variables: Mapping[str, str]) -> bytes:
    """Return CsrAttrs (DER): what a request for a certificate of this profile should hold.

    Args:
        profile: of an end entity.
        variables: those that are known: the run's, and the device's if it is known who asks.

    Raises:
        MalformedRequest: a value does not fit its field, or one that all certificates have in common is
            missing.
    """
    key = _key(profile.subject_key_algorithms[0])
    names, unknown = asked_subject(profile, variables)
    asked = der.attribute(_EXTENSION_REQUEST, asked_extensions(profile, variables))
    template = der.encode(
        der.SEQUENCE,
        der.integer(0),
        names,
        der.encode(_SUBJECT_KEY, key.template),
        der.encode(_REQUEST_ATTRIBUTES, asked),
    )
    return der.encode(
        der.SEQUENCE,
        key.attribute,
        *unknown,
        asked,
        key.signature,
        der.attribute(_INFO_TEMPLATE, template),
    )


def asked_extensions(profile: Profile, variables: Mapping[str, str]) -> bytes:
    """Return Extensions (DER), with their values; at least keyUsage, which every profile has.

    Raises:
        MalformedRequest: as ``csr_attributes``.
    """
    extensions = [
        constant_extension(profile, extension, variables)
        for extension in profile.extensions_for(variables)
        if extension in _ASKED_FOR
    ]
    return der.encode(der.SEQUENCE, *(octets for octets in extensions if octets is not None))


# --- the key ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """One key algorithm, in DER."""

    attribute: bytes
    """Attribute: its type and, in the SET, curve or size; an Edwards key has none (RFC 9908 section 3.2)."""
    template: bytes
    """The contents of a SubjectPublicKeyInfoTemplate (RFC 9908 section 3.4)."""
    signature: bytes
    """OBJECT IDENTIFIER of the request's signature; empty where the key leaves no choice."""


def _key(algorithm: KeyAlgorithm) -> _Key:
    row = ALGORITHMS[algorithm]
    point_or_modulus = row.key_prefix.ljust(row.key_size - len(row.key_suffix), b"\xff")
    placeholder = row.spki_prefix + point_or_modulus + row.key_suffix
    _, _, content, end = der.only(placeholder, der.SEQUENCE)
    identifier, _ = der.children(placeholder, content, end)
    kind, *parameters = (
        placeholder[start:stop] for _, start, _, stop in der.children(placeholder, *identifier[2:])
    )
    if row.key_suffix:
        # An RSA key's parameters are NULL.  A number says its size, and in the template "a placeholder public
        # key value of the desired RSA modulus length".
        parameters = [der.integer(8 * row.signature_size)]
    else:
        end = identifier[3]
    signature = b""
    if row.hash_algorithm is not None:
        name, *_ = der.children(row.signature_algorithm, *der.only(row.signature_algorithm, der.SEQUENCE)[2:])
        signature = row.signature_algorithm[name[1] : name[3]]
    return _Key(
        attribute=der.attribute(kind, b"".join(parameters)),
        template=placeholder[content:end],
        signature=signature,
    )


# --- the subject ---


def asked_subject(
    profile: Profile, variables: Mapping[str, str], *, blank: bytes = b""
) -> tuple[bytes, list[bytes]]:
    """Return a NameTemplate (DER), empty if nothing is asked for, and the types of what the client gives.

    Args:
        profile: of an end entity.
        variables: as of ``csr_attributes``.
        blank: what stands for a value that the client gives (DER); nothing in a NameTemplate.

    Raises:
        MalformedRequest: as ``csr_attributes``.
    """
    names: list[bytes] = []
    unknown: list[bytes] = []
    for attribute in profile.subject:
        missing = attribute.value.variables - variables.keys()
        if attribute.optional and _left_out(attribute, missing, variables):
            continue
        if missing:
            kind = ATTRIBUTES[attribute.attribute].oid
            names.append(der.encode(der.SET, der.encode(der.SEQUENCE, kind, blank)))
            unknown.append(kind)
        else:
            names.append(encode_attribute(attribute.attribute, attribute.value.render(variables)))
    return der.encode(der.SEQUENCE, *names) if names else b"", unknown


def _left_out(attribute: SubjectAttribute, missing: frozenset[str], variables: Mapping[str, str]) -> bool:
    known = attribute.value.variables - missing
    return not missing <= DEVICE_VARIABLES or not all(variables[name] for name in known)
