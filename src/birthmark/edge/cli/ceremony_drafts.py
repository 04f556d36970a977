"""``birthmark ceremony template``: files to begin with; nothing happens until custodians perform one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import printing
from birthmark.edge.cli.hierarchy import only_root
from birthmark.edge.cli.inputs import moment, pairs
from birthmark.edge.cli.options import DEFAULT_SETTINGS, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.authorities import ANY, Authority, Custody, Scope
from birthmark.floor.ceremonies import CeremonyRecord, Custodian
from birthmark.floor.realm import Environment
from birthmark.floor.revocations import Revocation
from birthmark.pki.certificates import Certificate, one_from_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.services import ceremony_file
from birthmark.services.ceremony_templates import (
    Head,
    Issuing,
    crl_file,
    import_file,
    issuing_file,
    realm_file,
)

__all__ = ["template"]


class Draft(StrEnum):
    """What a file is for."""

    REALM = "realm"
    ISSUING = "issuing"
    INTERMEDIATE = "intermediate"
    IMPORT = "import"
    CRL = "crl"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What is known where the file is made."""

    realm: str
    environment: str
    organization: str
    custodians: tuple[Custodian, ...]
    required: int
    parent: Authority | None
    revoked: tuple[str, ...]


def template(
    context: typer.Context,
    kind: Annotated[Draft, typer.Argument(help="What the ceremony is for.")],
    *,
    ceremony: Annotated[str, typer.Option("--id", metavar="ID", help="Id of the ceremony.")],
    purpose: Annotated[str | None, typer.Option(help="In one line. [says what it makes]")] = None,
    authority: Annotated[
        str, typer.Option(metavar="ID", help="The authority it is about; also the label of a new key.")
    ] = "issuing-1",
    name: Annotated[str | None, typer.Option(help="Common name. [REALM Issuing CA ID]")] = None,
    issuer: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The authority above. [that of the replaced one, or the only root]"),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Of its certificate. [the kind's own]")] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME=VALUE", help="Variable of the profile; may be given again."),
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Who answers for it. [the organization]")] = None,
    scope: Annotated[
        str, typer.Option(metavar="SCOPE", help="What it may issue for, like product=VAN|CAR;site=graz.")
    ] = ANY,
    may_issue: Annotated[
        list[str] | None, typer.Option("--profiles", metavar="NAME", help="A profile it may issue. [any]")
    ] = None,
    quota: Annotated[
        int | None, typer.Option(min=1, help="The most device certificates it may issue. [no limit]")
    ] = None,
    ends: Annotated[
        str | None, typer.Option(metavar="DATE", help="Issues nothing from then on, e.g. 2031-01-01.")
    ] = None,
    replaces: Annotated[
        str | None, typer.Option(metavar="ID", help="The authority it takes over from.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="import: the foreign authority's certificate.")
    ] = None,
    next_update: Annotated[
        str | None, typer.Option(metavar="DATE", help="crl: when the next list will be there.")
    ] = None,
    key_algorithm: Annotated[KeyAlgorithm, typer.Option(help="Of new keys.")] = KeyAlgorithm.EC_P256,
    key_prefix: Annotated[str, typer.Option(metavar="TEXT", help="Goes before labels of new keys.")] = "",
    custodian: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=FILE", help="Custodian and public key (PEM). [those of the last ceremony]"),
    ] = None,
    required: Annotated[
        int | None, typer.Option(min=1, help="How many of them must attend. [as in the last, or 2]")
    ] = None,
    realm: Annotated[str | None, typer.Option(help="realm: name of the new realm.")] = None,
    organization: Annotated[str | None, typer.Option(help="realm: legal name of the maker.")] = None,
    environment: Annotated[Environment, typer.Option(help="realm: test or production.")] = Environment.TEST,
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """Print a complete file for review; change what has to be otherwise, then rehearse it."""
    people = _people(custodian or [])
    if kind is Draft.REALM:
        if realm is None or organization is None or not people:
            raise errors.MalformedRequest("a new realm needs --realm, --organization and --custodian")
        place = _Place(
            realm=realm,
            environment=str(environment),
            organization=organization,
            custodians=people,
            required=required or min(2, len(people)),
            parent=None,
            revoked=(),
        )
    else:
        with session_of(context).application(settings) as application:
            above = issuer or (None if replaces is None else _authority(application, replaces).issuer)
            place = _here(application, kind, above, authority, people, required)
    head = Head(
        ceremony=ceremony,
        realm=place.realm,
        environment=place.environment,
        purpose=purpose or f"{kind} {authority} of realm {place.realm}",
        required=place.required,
        custodians=place.custodians,
    )
    if kind is Draft.IMPORT:
        if certificate is None:
            raise errors.MalformedRequest("say with --certificate which certificate is to be imported")
        found = _certificate(certificate)
        named = owner or found.subject[:100]
        text = import_file(head, authority, found, owner=named, issuer=issuer or "self")
    elif kind is Draft.CRL:
        text = crl_file(head, authority, place.revoked, _when(next_update, "--next-update"))
    else:
        variables = pairs(subject or [])
        issuing = Issuing(
            authority=authority,
            label=f"{key_prefix}{authority}",
            algorithm=key_algorithm,
            issuer=place.parent.id if place.parent else "root",
            owner=owner or place.organization,
            ends=_when(ends, "--ends"),
            kind=str(kind) if kind is Draft.INTERMEDIATE else "issuing",
            profile=profile or (str(kind) if kind is Draft.INTERMEDIATE else "issuing"),
            subject=_subject(place, variables, name or f"{place.realm} Issuing CA {authority}"),
            scope=str(Scope.parse(scope if scope == ANY or "=" in scope else f"product={scope}")),
            profiles=may_issue or [ANY],
            quota=quota,
            replaces=replaces,
        )
        if kind is Draft.REALM:
            text = realm_file(
                head,
                issuing,
                root="root",
                root_store="root",
                organization=place.organization,
                log=f"{key_prefix}log",
            )
        else:
            text = issuing_file(head, issuing)
    ceremony_file.parse(text.encode())
    printing.line(text.rstrip("\n"))


def _subject(place: _Place, variables: Mapping[str, str], name: str) -> dict[str, str]:
    return {"organization": place.organization, "authority": name} | dict(variables)


def _when(text: str | None, option: str) -> datetime:
    if text is None:
        raise errors.MalformedRequest(f"say with {option} when")
    return moment(text).replace(microsecond=0)


def _people(given: list[str]) -> tuple[Custodian, ...]:
    people = []
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            raise errors.MalformedRequest(f"a custodian is written ID=FILE, not {text!r}")
        try:
            spki = one_from_pem(Path(path).read_text(encoding="ascii"), "PUBLIC KEY")
        except (OSError, UnicodeDecodeError) as cause:
            raise errors.NotFound(f"the public key {path} cannot be read") from cause
        except errors.MalformedRequest as wrong:
            raise errors.MalformedRequest(f"{path}: {wrong}") from wrong
        people.append(Custodian(id=name, role="custodian", subject_public_key_info=spki))
    return tuple(people)


def _certificate(path: Path) -> Certificate:
    try:
        return Certificate.from_pem(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as cause:
        raise errors.NotFound(f"the certificate {path} cannot be read") from cause


def _here(
    application: Application,
    kind: Draft,
    issuer: str | None,
    authority: str,
    people: tuple[Custodian, ...],
    required: int | None,
) -> _Place:
    rows = sorted(application.store.scan(CeremonyRecord), key=lambda row: row.leaf)
    last = ceremony_file.parse(rows[-1].file) if rows else None
    if not people and last is None:
        raise errors.MalformedRequest("there was no ceremony before: name the custodians with --custodian")
    parent = None
    if kind in (Draft.ISSUING, Draft.INTERMEDIATE):
        parent = _parent(application, issuer)
    revoked: list[str] = []
    if kind is Draft.CRL:
        found = application.store.look({Authority: (authority,)}).get(Authority, authority)
        if found is None or found.custody is not Custody.OFFLINE:
            raise errors.NotFound(f"there is no authority {authority} with an offline key")
        revoked = sorted(
            revocation.id.rpartition("/")[2]
            for revocation in application.store.scan(Revocation, after=f"{authority}/")
            if revocation.id.startswith(f"{authority}/") and revocation.entry
        )
    return _Place(
        realm=application.realm.name,
        environment=str(application.realm.environment),
        organization=application.settings.realm.organization,
        custodians=people or (last.custodians if last else ()),
        required=required or (last.required if last and not people else min(2, len(people))),
        parent=parent,
        revoked=tuple(revoked),
    )


def _parent(application: Application, issuer: str | None) -> Authority:
    if issuer is None:
        return only_root(application)
    return _authority(application, issuer)


def _authority(application: Application, name: str) -> Authority:
    found = application.store.look({Authority: (name,)}).get(Authority, name)
    if found is None:
        raise errors.NotFound(f"there is no authority {name}")
    return found
