"""How people get in, and what they may do: commands of ``birthmark operator`` beside those of ``clients``.

In production a person's private key is made on the person's own machine (``request``), two officers let the
person in (``enrol`` and ``proposal approve``), and the person takes the certificate away (``fetch``).  In a
test realm one officer does it all.
"""

from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import credentials, printing
from birthmark.edge.cli.clients import (
    AuthorityOption,
    UntilOption,
    Wanted,
    client_of,
    enrol,
    enrolment_of,
    operators,
    requested_key,
    service_of,
)
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, Csr, Out, Reason, SettingsPath
from birthmark.edge.cli.proposals import put
from birthmark.edge.cli.session import session_of
from birthmark.floor.clients import PEOPLE, PERSON, Capability, Credential, Role, check_name, takes_two
from birthmark.floor.proposals import Deed
from birthmark.pki.certificates import Certificate
from birthmark.ports import carry
from birthmark.services.authorise import Enrolled
from birthmark.services.proposals import terms_of
from birthmark.services.runs import authority_chain

__all__ = ["operators"]


def _person(text: str) -> Role:
    if text not in PEOPLE:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(sorted(PEOPLE))}")
    return Role(text)


RoleOption = Annotated[
    Role,
    typer.Option(
        "--role",
        metavar="ROLE",
        help="What the person may do: operator, line-lead, officer or auditor.",
        parser=_person,
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="An operator id, not a person's name.")]
OwnOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The person's directory; in production see 'operator fetch'."),
]
Why = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; goes into the log where it is proposed.")
]


def _two(application: Application) -> bool:
    return takes_two(Capability.CHANGE_ROLES, application.realm.environment)


@operators.command("enrol")
def enrol_person(
    context: typer.Context,
    name: Name,
    *,
    role: RoleOption,
    out: OwnOut = None,
    csr: Csr = None,
    authority: AuthorityOption = None,
    until: UntilOption = None,
    reason: Why = "joins",
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Let a person in with a role; in production, propose it with the request of 'operator request'."""
    _let_in(
        context,
        settings,
        as_directory,
        Wanted(
            role=role,
            name=name,
            variables={PERSON: name},
            out=out or Path(),
            csr=csr,
            authority=authority,
            until=until,
        ),
        reason,
        named=out is not None,
    )


@operators.command("renew")
def renew_person(
    context: typer.Context,
    name: Name,
    *,
    out: OwnOut = None,
    csr: Csr = None,
    authority: AuthorityOption = None,
    until: UntilOption = None,
    reason: Why = "renewal",
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Give a person another key and certificate; those in use stay good until they end.

    Everybody renews their own. In production two officers renew somebody else's: whoever holds it
    acts as that person.
    """
    _let_in(
        context,
        settings,
        as_directory,
        Wanted(
            role=Role.OPERATOR,
            name=name,
            variables={PERSON: name},
            out=out or Path(),
            csr=csr,
            authority=authority,
            until=until,
            renew=True,
        ),
        reason,
        named=out is not None,
    )


def _let_in(
    context: typer.Context,
    settings: Path,
    as_directory: Path | None,
    wanted: Wanted,
    reason: str,
    *,
    named: bool,
) -> None:
    client = f"{PERSON}:{wanted.name}"
    with session_of(context).acting(settings, as_directory) as (application, someone):
        alone = not _two(application) or (wanted.renew and someone.caller.client.id == client)
        if not alone:
            if wanted.csr is None:
                raise errors.MalformedRequest(
                    f"in production the key stays with the person: 'birthmark operator request {wanted.name}"
                    " --out DIR' there, and bring DIR/request.csr with --csr"
                )
            spki = requested_key(wanted.csr, wanted.role)
            enrolment = enrolment_of(application, wanted, spki)
            put(application, someone, Deed.ENROL_PERSON, client, terms_of(enrolment), reason)
            return
    if not named:
        raise errors.MalformedRequest("say with --out where the credential is to be written")
    enrol(context, settings, as_directory, wanted)


@operators.command("role")
def change_role(
    context: typer.Context,
    name: Name,
    *,
    role: RoleOption,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Give a person another role; in production, propose it."""
    client = f"{PERSON}:{name}"
    with session_of(context).acting(settings, as_directory) as (application, someone):
        if _two(application):
            put(application, someone, Deed.CHANGE_ROLE, client, {"role": str(role)}, reason)
            return
        changed = carry(application.store, application.proposals.change_role(someone.caller, client, role))
    printing.line(f"{changed.id} is {changed.role}")


@operators.command()
def request(name: Name, *, out: Out) -> None:
    """Make a key and a request for a certificate, on the person's own machine; the key stays there."""
    check_name(PERSON, name)
    credentials.require_room(out)
    key = credentials.fresh_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    out.mkdir(mode=credentials.DIRECTORY_MODE, exist_ok=True)
    credentials.write_new_file(out / "station.key", credentials.private_pem(key), credentials.PRIVATE_MODE)
    credentials.write_new_file(out / credentials.REQUEST, csr.public_bytes(Encoding.PEM).decode("ascii"))
    printing.line(f"send {out / credentials.REQUEST} to an officer; {out / 'station.key'} stays here")


@operators.command()
def fetch(
    context: typer.Context,
    name: Name,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The directory of 'operator request'.")],
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """Write a person's newest certificate, and what belongs to it, beside the person's key."""
    with session_of(context).application(settings) as application:
        client = client_of(application, f"{PERSON}:{name}")
        held = _newest_credential(application, client.id)
        chain = carry(application.store, authority_chain(held.authority))
        enrolled = Enrolled(
            client=client,
            certificate=Certificate.from_der(held.der),
            chain=tuple(authority.der for authority in chain[:-1]),
        )
        credentials.write(out, name, enrolled, None, service_of(application))
    printing.fields(
        {"client": client.id, "role": str(client.role), "until": held.not_after, "directory": out}
    )


def _newest_credential(application: Application, client: str) -> Credential:
    """Return the certificate of a client that ends last.

    Raises:
        errors.NotFound: it has none.
    """
    held = [one for one in application.store.scan(Credential) if one.client == client]
    if not held:
        raise errors.NotFound(f"there is no client {client}")
    return max(held, key=lambda one: one.not_after)
