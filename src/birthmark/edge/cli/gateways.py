"""``birthmark gateway``: the key and certificate that devices pin, the one after it, and the keys of tokens.

Devices hear of the next key while the present one is shown (``prepare``), and only later is it shown
(``rotate``): whoever reported in between goes on.  A running gateway takes both up by itself.
"""

from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.addresses import known_as, public_host
from birthmark.edge.application import Application
from birthmark.edge.cli import credentials, printing, server_files
from birthmark.edge.cli.clients import AuthorityOption
from birthmark.edge.cli.credentials import DIRECTORY_MODE, PRIVATE_MODE, write_new_file
from birthmark.edge.cli.hierarchy import certifier
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.servers import addresses, dns_names
from birthmark.edge.cli.session import Operator, session_of
from birthmark.edge.pins import pin_of, pins_of
from birthmark.floor.clients import Client, Role
from birthmark.floor.key_assets import KeyPurpose
from birthmark.pki import jwt
from birthmark.pki.certificates import to_pem
from birthmark.pki.keys import KeyAlgorithm, KeyLabel, check_label
from birthmark.ports import carry
from birthmark.services.authorise import Enrolled, Enrolment
from birthmark.services.custody import KeyCustody
from birthmark.settings import load
from birthmark.settings_gateway import GatewayPlane

__all__ = ["gateways"]

NAME = "gateway"
"""Of the client whose certificates these are."""
PASSPHRASE_OCTETS = 32

gateways = typer.Typer(
    name="gateway",
    no_args_is_help=True,
    help="The gateway: the certificate that devices pin, the next one, and the keys of tokens.",
)
Names = tuple[tuple[str, ...], tuple[str, ...]]
"""DNS names and IP addresses."""


@gateways.command()
def prepare(
    context: typer.Context,
    *,
    dns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="DNS name of the gateway; may be given again. [as it has now]"),
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="IP address of the gateway; likewise. [as it has now]"),
    ] = None,
    authority: AuthorityOption = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Make the gateway's key and certificate; if it has one, make the next one, which devices are told of.

    The files are those of the settings: certificate-file and key-file, or next-certificate-file and
    next-key-file. Run it as the service's own user: the files are then the service's.
    """
    session = session_of(context)
    with session.acting(settings, as_directory) as (application, operator):
        plane = application.settings.gateway_plane
        certificate_file, key_file = _room(plane)
        passphrase_file = plane.key_passphrase_file
        if not passphrase_file.exists():
            passphrase_file.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            text = application.entropy.token(PASSPHRASE_OCTETS).hex()
            write_new_file(passphrase_file, f"{text}\n", PRIVATE_MODE)
        passphrase = session.factory().read_secret(passphrase_file)
        key = credentials.fresh_key()
        enrolled = _enrol(
            application, operator, _names(plane, dns, ip), authority, credentials.public_der(key)
        )
        # The key first: the gateway takes a pair up as soon as there is a certificate.
        write_new_file(key_file, credentials.private_pem(key, passphrase), PRIVATE_MODE)
        write_new_file(certificate_file, "".join([enrolled.certificate.pem, *map(to_pem, enrolled.chain)]))
    shown = {
        "certificate": enrolled.certificate.serial_hex,
        "until": enrolled.certificate.not_after,
        "file": str(certificate_file),
        "pin": pin_of(certificate_file),
    }
    if as_json:
        printing.line(printing.json_text(shown))
        return
    printing.fields(shown)
    if certificate_file == plane.next_certificate_file:
        printing.line(
            "devices that report are told of it; when enough of them have, give 'birthmark gateway rotate'"
        )


def _room(plane: GatewayPlane) -> tuple[Path, Path]:
    """Return where a new pair of files goes."""
    if not plane.certificate_file.exists():
        return plane.certificate_file, plane.key_file
    certificate_file, key_file = _following(plane)
    if certificate_file.exists():
        raise errors.IllegalTransition(
            f"the next certificate is there already ({certificate_file}): rotate to it first"
        )
    key_file.unlink(missing_ok=True)  # of one that was broken off: nobody was told of it
    return certificate_file, key_file


def _following(plane: GatewayPlane) -> tuple[Path, Path]:
    if plane.next_certificate_file is None or plane.next_key_file is None:
        raise errors.NotFound(
            "the [gateway-plane] has no next-certificate-file and next-key-file: say where they are to be"
        )
    return plane.next_certificate_file, plane.next_key_file


def _names(plane: GatewayPlane, dns: list[str] | None, ip: list[str] | None) -> Names:
    if dns is None and ip is None:
        if not plane.certificate_file.exists():
            raise errors.MalformedRequest("say with --dns and --ip how devices find the gateway")
        return known_as(plane.certificate_file)
    return dns_names(dns or []), addresses(ip or [])


def _enrol(
    application: Application, operator: Operator, names: Names, authority: str | None, spki: bytes
) -> Enrolled:
    client = f"{Role.SERVER}:{NAME}"
    known = application.store.look({Client: (client,)}).get(Client, client)
    enrolment = Enrolment(
        role=Role.SERVER,
        name=NAME,
        subject_public_key_info=spki,
        authority=authority or certifier(application, Role.SERVER),
        variables={
            "organization": application.settings.realm.organization,
            "host": public_host(application.settings.gateway_plane.host, *names),
            "dns_names": " ".join(names[0]),
            "ip_addresses": " ".join(names[1]),
        },
        site=operator.caller.client.site,
        renew=known is not None,
    )
    return carry(application.store, application.authorise.enrol(operator.caller, enrolment))


@gateways.command()
def rotate(settings: SettingsPath = DEFAULT_SETTINGS, *, as_json: AsJson = False) -> None:
    """Show the next certificate from now on, in one step; the running gateway takes it up by itself."""
    plane = load(settings).gateway_plane
    certificate_file, key_file = _following(plane)
    try:
        pair = [path.read_text(encoding="ascii") for path in (certificate_file, key_file)]
    except OSError as cause:
        raise errors.NotFound(f"there is no next certificate: {cause.filename} cannot be read") from cause
    before = pins_of(plane)
    with server_files.changing(plane) as files:
        files.put(*pair)
        for path in (certificate_file, key_file):
            path.unlink()
    shown = {"pin": pin_of(plane.certificate_file), "before": before.now}
    if as_json:
        printing.line(printing.json_text(shown))
        return
    printing.fields(shown)
    printing.line("devices that were not told of this pin beforehand will refuse the gateway")


@gateways.command("pins")
def show_pins(settings: SettingsPath = DEFAULT_SETTINGS, *, as_json: AsJson = False) -> None:
    """Show what devices pin: SHA-256 of the gateway's SubjectPublicKeyInfo, in base64."""
    found = pins_of(load(settings).gateway_plane)
    shown = {"pin": found.now, "next_pin": found.next}
    printing.line(printing.json_text(shown)) if as_json else printing.fields(shown)


@gateways.command("token-key")
def make_token_key(
    context: typer.Context,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="1 to 64 of a-z 0-9 - .")],
    *,
    algorithm: Annotated[
        KeyAlgorithm, typer.Option(help="ec-p256 (ES256) or ed25519 (EdDSA).")
    ] = KeyAlgorithm.EC_P256,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Make a key for tokens in the service's key store; name it in token-keys, and restart the gateway.

    Not in production: there a ceremony makes it, with the purpose token.
    """
    name = check_label(label)
    jwt.require_algorithm(algorithm)
    with session_of(context).acting(settings, as_directory) as (application, operator):
        custody = KeyCustody(application.realm, application.clock, application.entropy)
        store, keys = next(iter(application.key_stores)), application.keys
        making = custody.generate(
            operator.caller, keys, store, name, KeyPurpose.TOKEN, lambda: keys.generate(name, algorithm)
        )
        public = carry(application.store, making)
    printing.fields({"key": name, "kid": jwt.key_id(public)})


@gateways.command("key-set")
def show_key_set(context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS) -> None:
    """Print the keys that tokens are verified with (JWK Set, RFC 7517): for brokers that want a file."""
    with session_of(context).application(settings) as application:
        labels = application.settings.gateway_plane.token_keys
        keys = [jwt.jwk(application.keys.public_key(KeyLabel(label))) for label in labels]
    printing.line(printing.json_text({"keys": keys}))
