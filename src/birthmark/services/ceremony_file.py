"""Read a ceremony's file: YAML, one reading, nothing left open.

Every scalar is text until a field says otherwise, so that neither ``no`` nor ``12:30`` nor ``0777`` can mean
what nobody wrote; there are no aliases, no tags, and no key twice.  The reader is total: a file is a valid
``Ceremony`` or one ``MalformedRequest`` (or ``PolicyRefused``) that names the place; an unknown key is an
error.  What a step means is ``ceremony_steps``'s business.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import Any, NoReturn, TypeVar

import yaml

from birthmark import errors
from birthmark.floor.authorities import ANY, AuthorityKind, Scope
from birthmark.floor.ceremonies import (
    ITSELF,
    SERVICE,
    AcceptKey,
    Ceremony,
    Certify,
    CrossCertify,
    Custodian,
    GenerateKey,
    ImportAuthority,
    KeyStep,
    Licence,
    Retire,
    SignCRL,
    Step,
)
from birthmark.floor.clients import check_name
from birthmark.floor.key_assets import KeyPurpose, kind_of, policy_for, suits
from birthmark.floor.locations import crl_path
from birthmark.floor.realm import Environment
from birthmark.pki.algorithms import recognise
from birthmark.pki.attributes import SecretKind, TransportKind
from birthmark.pki.certificates import Certificate, one_from_pem
from birthmark.pki.constraints import constraints_text, parse_constraint
from birthmark.pki.keys import KeyAlgorithm, KeyLabel, check_label

__all__ = ["FILE_LIMIT", "STEPS", "parse"]

FILE_LIMIT = 262_144
"""Longest file, in octets."""
_MOST_STEPS = 256
_MOST_CUSTODIANS = 32
_ID = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?", re.ASCII)
_ID_SAID = "1 to 64 of a-z 0-9 . -, not beginning or ending with . or -"
_SERIAL = re.compile(r"([0-9a-f]{2}){1,20}")
_CHECK_VALUE = re.compile(r"[0-9a-f]{10}", re.ASCII)
_OFFLINE = re.compile(r"offline ([a-z0-9][a-z0-9-]{0,31})", re.ASCII)
_E = TypeVar("_E", bound=StrEnum)


class _Loader(yaml.BaseLoader):
    """Texts, lists and tables; nothing else."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise errors.MalformedRequest(f"{_line(self._event())}: an alias: write it out")
        event = self._event()
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            raise errors.MalformedRequest(f"{_line(event)}: an anchor or a tag has no place here")
        return super().compose_node(parent, index)

    def _event(self) -> Any:
        return self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it untyped

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: ARG002, FBT001, FBT002  # the library's signature
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise errors.MalformedRequest(f"{_line(key_node)}: a key is a word")
            if key_node.value in found:
                raise errors.MalformedRequest(f"{_line(key_node)}: {key_node.value} is there twice")
            found[key_node.value] = self.construct_object(value_node, deep=True)
        return found


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_mapping)


def _line(thing: Any) -> str:
    return f"line {thing.start_mark.line + 1}"


def parse(octets: bytes) -> Ceremony:
    """Return the ceremony a file (UTF-8) orders.

    Raises:
        errors.MalformedRequest: it is no such file; the message names the place.
        errors.PolicyRefused: it is one, and orders what no ceremony may (rule ``custodians``).
        errors.TooLarge: it has more than ``FILE_LIMIT`` octets.
    """
    if len(octets) > FILE_LIMIT:
        raise errors.TooLarge(f"a ceremony's file has at most {FILE_LIMIT} octets, not {len(octets)}")
    try:
        document = yaml.load(octets.decode("utf-8"), Loader=_Loader)  # noqa: S506  # makes texts, lists, tables
    except errors.MalformedRequest as wrong:
        raise errors.MalformedRequest(f"ceremony: {wrong}") from wrong
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as wrong:
        said = " ".join(str(wrong).split())[:300]
        raise errors.MalformedRequest(f"ceremony: not a yaml file: {said}") from wrong
    table = _Table(document, "")
    environment = table.enum(Environment, "environment")
    ceremony = Ceremony(
        id=table.matching("ceremony", _ID, _ID_SAID),
        realm=table.name("realm"),
        environment=str(environment),
        mark=environment.mark,
        purpose=table.words("purpose", 500),
        required=table.number("required"),
        custodians=tuple(_custodian(entry) for entry in table.tables("custodians", _MOST_CUSTODIANS)),
        steps=tuple(_step(entry) for entry in table.tables("steps", _MOST_STEPS)),
        file=octets,
        sha256=sha256(octets).hexdigest(),
    )
    table.finish()
    _check_custodians(ceremony)
    _check_names(ceremony)
    return ceremony


def _check_custodians(ceremony: Ceremony) -> None:
    people, needed = ceremony.custodians, ceremony.required
    if len({person.id for person in people}) != len(people):
        raise errors.MalformedRequest("ceremony: custodians: one id is there twice")
    if len({person.subject_public_key_info for person in people}) != len(people):
        raise errors.MalformedRequest("ceremony: custodians: two have the same key, and would be one person")
    if not 1 <= needed <= len(people):
        raise errors.MalformedRequest(
            f"ceremony: required: {needed} of {len(people)} custodians cannot be present"
        )
    if ceremony.environment == Environment.PRODUCTION and needed < 2:
        raise errors.PolicyRefused(
            "custodians", "a ceremony of a production realm requires at least two custodians"
        )


def _check_names(ceremony: Ceremony) -> None:
    if not ceremony.steps:
        raise errors.MalformedRequest("ceremony: steps: there is none")
    labels: list[str] = [step.label for step in ceremony.steps if isinstance(step, KeyStep)]
    made = [
        step.name if isinstance(step, CrossCertify) else step.authority
        for step in ceremony.steps
        if isinstance(step, Certify | ImportAuthority | CrossCertify)
    ]
    lists = [step.authority for step in ceremony.steps if isinstance(step, SignCRL)]
    for what, names in (("key", labels), ("certificate", made), ("list of revocations", lists)):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise errors.MalformedRequest(f"ceremony: steps: the {what} {twice[0]} is ordered twice")


def _custodian(table: "_Table") -> Custodian:
    pem = table.optional("public-key")
    certificate = table.optional("certificate")
    if (pem is None) == (certificate is None):
        table.refuse("public-key", "a custodian has either a public-key or a certificate")
    if pem is not None:
        spki = table.read("public-key", partial(one_from_pem, pem, "PUBLIC KEY"))
    else:
        spki = table.read(
            "certificate", lambda: Certificate.from_pem(certificate or "").subject_public_key_info
        )
    if recognise(spki) is None:
        table.refuse("public-key", "a key of none of our algorithms")
    found = Custodian(id=table.name("id"), role=table.words("role", 100), subject_public_key_info=spki)
    table.finish()
    return found


# --- steps --------------------------------------------------------------------------------------------------


def _generate_key(table: "_Table", name: str) -> Step:
    kind = kind_of(table.take("kind"))
    if kind is None:
        known = ", ".join((*KeyAlgorithm, *SecretKind, *TransportKind))
        table.refuse("kind", f"is one of {known}")
    purpose = table.enum(KeyPurpose, "purpose")
    exportable = table.truth("exportable-under-kek")
    recipients = tuple(
        table.read("recipients", partial(one_from_pem, text, "PUBLIC KEY"))
        for text in table.texts("recipients")
    )
    if not suits(purpose, kind) or purpose is KeyPurpose.STATIC_KEY:
        table.refuse("kind", f"a {kind} key is nothing for {purpose}")
    if exportable and not isinstance(kind, KeyAlgorithm):
        table.refuse("exportable-under-kek", f"is for keys that sign; a {policy_for(purpose)} never leaves")
    if recipients and purpose is not KeyPurpose.KEK:
        table.refuse("recipients", "only a kek is shared")
    return GenerateKey(
        label=table.label("generate-key", name),
        store=table.store("store"),
        purpose=purpose,
        kind=kind,
        exportable=exportable,
        users=table.words("users", 200, default=str(purpose)),
        recipients=recipients,
    )


def _accept_key(table: "_Table", name: str) -> Step:
    kind, purpose = table.enum(SecretKind, "kind"), table.enum(KeyPurpose, "purpose")
    if purpose is KeyPurpose.KEK or not suits(purpose, kind):
        table.refuse("kind", f"a {kind} key is nothing for {purpose}")
    share = table.read("share", partial(_octets, table.take("share")))
    return AcceptKey(
        label=table.label("accept-key", name),
        store=table.store("store"),
        purpose=purpose,
        kind=kind,
        users=table.words("users", 200, default=str(purpose)),
        share=share,
        transport=table.label("transport", table.take("transport")),
        check_value=table.matching("check-value", _CHECK_VALUE, "10 hexadecimal digits, lower case"),
    )


def _octets(text: str) -> bytes:
    try:
        return b64decode("".join(text.split()), validate=True)
    except ValueError as wrong:
        raise errors.MalformedRequest("is no base64") from wrong


def _certificate(table: "_Table", name: str) -> Step:
    kind = table.enum(AuthorityKind, "kind")
    issuer = table.take("issuer")
    if (kind is AuthorityKind.ROOT) != (issuer == ITSELF):
        table.refuse("issuer", "a root, and nobody else, is certified by 'self'")
    return Certify(
        authority=table.authority("certificate", name),
        kind=kind,
        profile=table.take("profile"),
        key=table.label("key", table.take("key")),
        issuer=issuer,
        variables=table.variables("subject"),
        not_after=table.moment("not-after"),
        licence=_licence(table.table("licence")),
        replaces=table.optional("replaces"),
    )


def _cross_certificate(table: "_Table", name: str) -> Step:
    return CrossCertify(
        name=table.authority("cross-certificate", name),
        authority=table.take("authority"),
        issuer=table.take("issuer"),
        profile=table.take("profile"),
        variables=table.variables("subject"),
        not_after=table.moment("not-after"),
    )


def _import_authority(table: "_Table", name: str) -> Step:
    certificate = table.read("certificate", lambda: Certificate.from_pem(table.take("certificate")))
    if table.take("sha256").lower().replace(":", "") != certificate.fingerprint:
        table.refuse("sha256", f"the certificate's is {certificate.fingerprint}")
    kind = table.enum(AuthorityKind, "kind")
    issuer = table.take("issuer")
    if (kind is AuthorityKind.ROOT) != (issuer == ITSELF):
        table.refuse("issuer", "a root, and nobody else, is certified by 'self'")
    return ImportAuthority(
        authority=table.authority("import-authority", name),
        kind=kind,
        issuer=issuer,
        certificate=certificate.der,
        licence=_licence(table.table("licence")),
    )


def _sign_crl(table: "_Table", name: str) -> Step:
    next_update = table.moment("next-update")
    if next_update is None:
        table.refuse("next-update", "is missing")
    revoked = tuple(sorted(table.texts("revoked")))
    for serial in revoked:
        if not _SERIAL.fullmatch(serial) or revoked.count(serial) > 1:
            table.refuse("revoked", f"serial numbers in lower-case hex, each once, not {serial[:64]!r}")
    return SignCRL(authority=name, next_update=next_update, revoked=revoked)


def _retire(table: "_Table", name: str) -> Step:
    return Retire(authority=name, reason=table.words("reason", 500))


STEPS: Mapping[str, Callable[["_Table", str], Step]] = {
    "generate-key": _generate_key,
    "accept-key": _accept_key,
    "certificate": _certificate,
    "cross-certificate": _cross_certificate,
    "import-authority": _import_authority,
    "sign-crl": _sign_crl,
    "retire": _retire,
}
"""The kinds of step; each is a table whose first key is the kind, with the name of what it is about."""


def _step(table: "_Table") -> Step:
    kind = table.first
    if kind not in STEPS:
        table.refuse("", f"a step begins with one of {', '.join(STEPS)}")
    step = STEPS[kind](table, table.take(kind))
    table.finish()
    return step


def _licence(table: "_Table") -> Licence:
    listed = table.texts("profiles", default=(ANY,))
    if not listed or (ANY in listed and len(listed) > 1) or len(set(listed)) != len(listed):
        table.refuse("profiles", "names each profile once, or '*' alone")
    licence = Licence(
        owner=table.words("owner", 100),
        scope=str(table.read("scope", lambda: Scope.parse(_scope(table)))),
        profiles=" ".join(sorted(listed)),
        constraints=table.constraints("constraints"),
        quota=table.number("quota", default=None) if "quota" in table else None,
        ends_at=table.moment("ends"),
    )
    if licence.quota is not None and not 1 <= licence.quota <= 10**12:
        table.refuse("quota", "is a number from 1")
    table.finish()
    return licence


def _scope(table: "_Table") -> str:
    text = table.optional("scope")
    if text == "":
        table.refuse("scope", "is empty: '*' means everything, and so does a licence without one")
    return ANY if text is None else text


class _Table:
    """A table that is emptied key by key; what is left over at the end is refused."""

    __slots__ = ("_rest", "_where")

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, dict):
            raise errors.MalformedRequest(f"ceremony: {where or 'the file'}: is a table of keys and values")
        self._rest: dict[str, Any] = dict(content)
        self._where = where

    @property
    def first(self) -> str:
        return next(iter(self._rest), "")

    def __contains__(self, key: str) -> bool:
        return key in self._rest

    def refuse(self, key: str, complaint: str) -> NoReturn:
        place = ": ".join(part for part in (self._where, key) if part)
        raise errors.MalformedRequest(f"ceremony: {place}: {complaint}")

    def finish(self) -> None:
        for key in self._rest:
            self.refuse(key, "unknown key")

    def read(self, key: str, reader: Callable[[], Any]) -> Any:
        try:
            return reader()
        except errors.MalformedRequest as wrong:
            if str(wrong).startswith("ceremony: "):
                raise
            self.refuse(key, str(wrong))

    def optional(self, key: str) -> str | None:
        value = self._rest.pop(key, None)
        if value is not None and not isinstance(value, str):
            self.refuse(key, "is a text")
        return value

    def take(self, key: str) -> str:
        value = self.optional(key)
        if not value:
            self.refuse(key, "is missing")
        return value

    def words(self, key: str, longest: int, *, default: str | None = None) -> str:
        value = self.optional(key)
        if value is None and default is not None:
            return default
        text = (value or "").strip()
        if not 1 <= len(text) <= longest or not text.isprintable():
            self.refuse(key, f"is 1 to {longest} printable characters in one line")
        return text

    def matching(self, key: str, pattern: re.Pattern[str], wanted: str) -> str:
        return self.matched(key, self.take(key), pattern, wanted)

    def matched(self, key: str, value: str, pattern: re.Pattern[str], wanted: str) -> str:
        if not pattern.fullmatch(value):
            self.refuse(key, f"is {wanted}, not {value[:80]!r}")
        return value

    def authority(self, key: str, value: str) -> str:
        """Return the name of a new certificate: below it everything of the authority is published."""
        self.matched(key, value, _ID, _ID_SAID)
        self.read(key, lambda: crl_path(value))
        return value

    def label(self, key: str, value: str) -> KeyLabel:
        return KeyLabel(self.read(key, lambda: check_label(value)))

    def name(self, key: str) -> str:
        value = self.take(key)
        self.read(key, lambda: check_name(key, value))
        return value

    def enum(self, kind: type[_E], key: str) -> _E:
        value = self.take(key)
        try:
            return kind(value)
        except ValueError:
            self.refuse(key, f"is one of {', '.join(kind)}, not {value[:80]!r}")

    def number(self, key: str, *, default: int | None = None) -> int:
        text = self.optional(key)
        if text is None and default is not None:
            return default
        if text is None or not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
            self.refuse(key, "is a number in decimal digits")
        return int(text)

    def truth(self, key: str) -> bool:
        value = self.optional(key) or "false"
        if value not in {"true", "false"}:
            self.refuse(key, "is true or false")
        return value == "true"

    def moment(self, key: str) -> datetime | None:
        text = self.optional(key)
        if text is None:
            return None
        try:
            found = datetime.fromisoformat(text)
            found = (found if len(text) > 10 else found.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            self.refuse(key, f"is a day like 2031-01-01 or a time like 2031-01-01T12:00Z, not {text[:40]!r}")
        if len(text) > 10 and datetime.fromisoformat(text).tzinfo is None:
            self.refuse(key, "does not say in which time zone: end it with Z")
        return found.replace(microsecond=0)

    def store(self, key: str) -> str:
        value = self.take(key)
        offline = _OFFLINE.fullmatch(value)
        if value != SERVICE and (offline is None or offline[1] == SERVICE):
            self.refuse(key, f"is 'service' or 'offline NAME', not {value[:80]!r}")
        return offline[1] if offline else SERVICE

    def texts(self, key: str, default: Sequence[str] = ()) -> list[str]:
        value = self._rest.pop(key, None)
        if value is None:
            return list(default)
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            self.refuse(key, "is a list of texts")
        return value

    def variables(self, key: str) -> Mapping[str, str]:
        content = self._rest.pop(key, {})
        if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
            self.refuse(key, "is a table of variables and texts")
        return {name.replace("-", "_"): value for name, value in content.items()}

    def table(self, key: str) -> "_Table":
        if key not in self._rest:
            self.refuse(key, "is missing")
        return _Table(self._rest.pop(key), ": ".join(part for part in (self._where, key) if part))

    def tables(self, key: str, most: int) -> Iterator["_Table"]:
        value = self._rest.pop(key, None)
        if not isinstance(value, list) or len(value) > most:
            self.refuse(key, f"is a list of at most {most}")
        for number, entry in enumerate(value, 1):
            yield _Table(entry, f"{key} {number}")

    def constraints(self, key: str) -> str:
        value = self._rest.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self.refuse(key, "is a list of constraints")
        try:
            for entry in value:
                parse_constraint(entry)
            return constraints_text(value)
        except errors.MalformedRequest as wrong:
            self.refuse(key, str(wrong))
