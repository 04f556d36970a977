"""Where the keys of secure elements come from: the maker's master key, ours, and the profile that names both.

The elements' maker is played here, outside the realm: it makes a master key, tells its check value, and
encrypts it to the realm's transport key.  From then on both master keys are where the service's keys are.
"""

import secrets
from base64 import b64encode
from hashlib import sha256

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from demo.realm import OPERATOR, Workshop, secret_file

PROFILE = "gateway-element"
MAKER, OURS, TRANSPORT = "maker-2026", "acme-elements-2026", "from-the-maker"
INITIAL_KVN, FINAL_KVN = 0x30, 0x31
CERTIFICATE_TAG = 0x7F21

_PROFILE = f"""\
name = "{PROFILE}"
kind = "scp03"
aid = "A000000151000000"
mode = "s8"
parameters = [0x70]            # pseudo-random challenges, R-MAC, R-ENCRYPTION: nothing else is accepted
key-size = 32                  # AES-256
[initial]
kvn = 0x{INITIAL_KVN:02X}
master = "{MAKER}"
scheme = "kdf3"
context = "kdd"                # what the element says of itself
[final]
kvn = 0x{FINAL_KVN:02X}
master = "{OURS}"
scheme = "kdf3"
context = "kdd"
[[objects]]
tag = 0x{CERTIFICATE_TAG:04X}
content = "certificate"
[[objects]]
tag = 0x5F50
content = "text:https://enrol.acme.example/{{hardware_id}}"
"""

_CEREMONY = """\
ceremony: acme-elements-1
realm: acme
environment: test
purpose: master keys of secure elements, ours and the maker's
required: 1
{custodians}steps:
  - generate-key: {ours}
    store: service
    purpose: master-diversification
    kind: diversify-aes-256
  - accept-key: {maker}
    store: service
    purpose: master-diversification
    kind: diversify-aes-256
    transport: {transport}
    check-value: {check_value}
    share: {share}
"""


def make_masters(workshop: Workshop) -> None:
    """Have both master keys come to be where the realm's keys are."""
    screen = workshop.screen
    screen.say(
        "The elements' maker delivers them with keys derived from a master key of its own. That comes in"
        " encrypted, for the realm's transport key alone:"
    )
    workshop.birthmark("keys", "transport", TRANSPORT, "--out", "../maker/transport.pem")
    check_value, share = _maker(workshop)
    screen.say()
    screen.say(
        f"(The maker's own program: a master key, check value {check_value}, under RSAES-OAEP into a share of"
        f" {len(share)} octets.) A ceremony takes it in, and makes ours:"
    )
    file = workshop.realm / "acme-elements-1.yaml"
    file.write_text(
        _CEREMONY.format(
            custodians=_custodians(workshop),
            ours=OURS,
            maker=MAKER,
            transport=TRANSPORT,
            check_value=check_value,
            share=b64encode(share).decode(),
        )
    )
    workshop.birthmark(
        *("ceremony", "perform", file.name, "--custodian", f"operators/{OPERATOR}"),
        *("--reviewed", sha256(file.read_bytes()).hexdigest()),
        answer=lambda lines: lines[-4:],
    )
    workshop.birthmark(
        *("keys", "list"),
        answer=lambda lines: [line[:90] for line in lines if line.startswith(("label", MAKER, OURS))],
    )


def _maker(workshop: Workshop) -> tuple[str, bytes]:
    """Be the maker: return the check value of its master key, and the key for the realm."""
    place = workshop.directory / "maker"
    master = secrets.token_bytes(32)
    secret_file(place / "master", master.hex())
    cmac = CMAC(AES(master))
    cmac.update(bytes(16))
    transport = load_pem_public_key((place / "transport.pem").read_bytes())
    assert isinstance(transport, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303  # the one form that every token has
    return cmac.finalize()[:5].hex(), transport.encrypt(master, oaep)


def _custodians(workshop: Workshop) -> str:
    """Return the custodians of the realm's first ceremony, as its file has them."""
    first = (workshop.realm / "ceremony" / "ceremony.yaml").read_text()
    return first[first.index("custodians:") : first.index("steps:")]


def take_profile_in(workshop: Workshop) -> None:
    """Have the realm know what its elements are like, and which keys they get."""
    screen = workshop.screen
    settings = workshop.realm / "birthmark.toml"
    head, table, rest = settings.read_text().partition("[realm]")
    settings.write_text(f'{head}elements-directory = "elements"\n\n{table}{rest}')
    (workshop.realm / "elements").mkdir()
    file = workshop.realm / f"{PROFILE}.toml"
    file.write_text(_PROFILE)
    screen.say()
    screen.say(f"What one of these elements is like, and what it gets, is one file ({file.name}):")
    screen.output(_PROFILE.splitlines())
    workshop.birthmark("element", "add", file.name)
