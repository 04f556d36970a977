"""A ceremony for people, as text and as HTML: before it is performed, and as its record.

Both are made of the same rows, which say everything that the record says in words; the templates only lay
them out.  HTML is escaped by the template engine; what was written by others is one line of printable
characters, which the file's reader made sure of.
"""

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from cryptography import x509
from jinja2 import DictLoader, Environment, StrictUndefined

from birthmark.floor.authorities import Authority
from birthmark.floor.ceremonies import (
    AcceptKey,
    Certify,
    CrossCertify,
    GenerateKey,
    ImportAuthority,
    Retire,
    SignCRL,
)
from birthmark.ledger.entry import time_text
from birthmark.pki.certificates import Certificate, fingerprint, serial_hex
from birthmark.pki.profilelanguage import Extension
from birthmark.services.ceremony_keys import KeyMade
from birthmark.services.ceremony_steps import Progress

__all__ = ["render_html", "render_text", "rows_of"]

Row = tuple[str, str]

_TEXT = """\
RECORD OF A CEREMONY

{% for name, value in head -%}
{{ name.ljust(26) }}{{ value }}
{% endfor %}
{%- for title, rows in sections %}
{{ title }}
{% for name, value in rows -%}
{{ "  " ~ name.ljust(24) }}{{ value }}
{% endfor %}
{%- endfor %}
Signed by {{ signers|join(", ") }}

______________________________    ______________________________
"""

_HTML = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Ceremony {{ ceremony }}</title>
<style>
body { font: 11pt/1.4 serif; max-width: 60em; margin: 2em auto; }
h2 { font-size: 12pt; margin: 1.5em 0 0.3em; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: normal; width: 14em; vertical-align: top; }
td { font-family: monospace; overflow-wrap: anywhere; }
tr { border-top: 1px solid #ddd; }
.sign { margin-top: 4em; }
</style>
</head>
<body>
<h1>Record of a ceremony</h1>
<table>
{% for name, value in head -%}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor -%}
</table>
{% for title, rows in sections -%}
<h2>{{ title }}</h2>
<table>
{% for name, value in rows -%}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor -%}
</table>
{% endfor -%}
<p>Signed by {{ signers|join(", ") }}</p>
<p class="sign">______________________________ ______________________________</p>
</body>
</html>
"""

_PAGES = Environment(
    loader=DictLoader({"record.html": _HTML}),
    autoescape=True,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
_PLAIN = Environment(
    loader=DictLoader({"record.txt": _TEXT}),
    autoescape=False,  # noqa: S701  # plain text
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


def render_text(
    progress: Progress, body: Mapping[str, Any], record_sha256: str, signers: Sequence[str]
) -> str:
    """Return a record as text."""
    return _PLAIN.get_template("record.txt").render(_content(progress, body, record_sha256, signers))


def render_html(
    progress: Progress, body: Mapping[str, Any], record_sha256: str, signers: Sequence[str]
) -> str:
    """Return a record as one HTML page without anything from elsewhere."""
    return _PAGES.get_template("record.html").render(_content(progress, body, record_sha256, signers))


def _content(
    progress: Progress, body: Mapping[str, Any], record_sha256: str, signers: Sequence[str]
) -> dict[str, Any]:
    ceremony = progress.ceremony
    head = [
        ("ceremony", ceremony.id),
        ("realm", f"{ceremony.realm} ({ceremony.environment})"),
        ("purpose", ceremony.purpose),
        ("performed at", str(body["performed_at"])),
        ("software", str(body["software"])),
        ("custodians required", f"{ceremony.required} of {len(ceremony.custodians)}"),
        ("file sha-256", ceremony.sha256),
        ("record sha-256", record_sha256),
        *((f"key store {entry['store']}", str(entry["kind"])) for entry in body["stores"]),
        *((f"profile {entry['profile']}", f"sha-256 {entry['sha256']}") for entry in body["profiles"]),
    ]
    sections = [("Custodians", _people(progress)), *rows_of(progress)]
    return {"ceremony": ceremony.id, "head": head, "sections": sections, "signers": signers}


def _people(progress: Progress) -> list[Row]:
    rows = []
    for person in progress.ceremony.custodians:
        attended = [
            f"{session.place} at {time_text(session.at)}"
            for session in progress.sessions
            if person.id in session.present
        ]
        rows.append((person.id, f"{person.role}; {'; '.join(attended) or 'did not attend'}"))
        rows.append(("  key sha-256", fingerprint(person.subject_public_key_info)))
    return rows


def rows_of(progress: Progress) -> list[tuple[str, list[Row]]]:
    """Return what each step came to: a title and rows of name and value, for the steps that are done."""
    found = []
    for number, step in enumerate(progress.ceremony.steps[: progress.number], 1):
        match step:
            case GenerateKey():
                title, rows = f"Key {step.label}", _key(progress.keys[step.label])
            case AcceptKey():
                title = f"Key {step.label}, which somebody else made"
                rows = [*_key(progress.keys[step.label]), ("share", f"sha-256 {fingerprint(step.share)}")]
            case Certify():
                title = f"Authority {step.authority}"
                rows = _authority(progress.authorities[step.authority], step.replaces)
            case CrossCertify():
                title = f"Cross-certificate {step.name} of authority {step.authority}"
                rows = [("issuer", step.issuer), *_certificate(progress.certificates[step.name])]
            case ImportAuthority():
                title = f"Authority {step.authority}, whose key is somebody else's"
                rows = _authority(progress.authorities[step.authority], None)
            case SignCRL():
                title, rows = f"CRL of {step.authority}", _crl(progress.crls[step.authority])
            case Retire():
                title, rows = f"Authority {step.authority} retired", [("reason", step.reason)]
            case _:
                assert_never(step)
        found.append((f"Step {number}. {title}", rows))
    return found


def _key(made: KeyMade) -> list[Row]:
    live, step = made.attributes, made.step
    flags = (
        *("token", "private", "sensitive", "always_sensitive", "extractable", "never_extractable", "local"),
        *("sign", "derive", "wrap", "unwrap", "encrypt", "decrypt", "wrap_with_trusted", "trusted"),
        *("modifiable", "copyable", "destroyable"),
    )
    kind = "development (software)" if live.development else "token"
    return [
        ("store", f"{step.store}, {kind}"),
        ("purpose", str(step.purpose)),
        ("kind", str(step.kind)),
        ("users", step.users),
        ("fingerprint", live.fingerprint),
        ("made at", time_text(made.at)),
        ("has", ", ".join(f"CKA_{name.upper()}" for name in flags if getattr(live, name, False))),
        ("has not", ", ".join(f"CKA_{name.upper()}" for name in flags if not getattr(live, name, True))),
        *((f"share {n}", f"sha-256 {fingerprint(share)}") for n, share in enumerate(made.shares, 1)),
    ]


def _authority(authority: Authority, replaces: str | None) -> list[Row]:
    rows = [
        ("kind", f"{authority.kind}, key in {authority.custody} custody"),
        ("issuer", "itself" if authority.issuer == authority.id else authority.issuer),
        *_certificate(authority.der),
        ("profile", authority.profile or "none of ours"),
        ("owner", authority.owner),
        ("scope", authority.scope),
        ("may issue", authority.profiles),
        ("constraints", authority.constraints),
        ("quota", "none" if authority.quota is None else str(authority.quota)),
        ("issues until", time_text(authority.ends_at)),
    ]
    return rows if replaces is None else [*rows, ("takes over from", replaces)]


def _certificate(octets: bytes) -> list[Row]:
    found, parsed = Certificate.from_der(octets), x509.load_der_x509_certificate(octets)
    rows = [
        ("subject", found.subject),
        ("serial number", found.serial_hex),
        ("valid from", time_text(found.not_before)),
        ("valid until", time_text(found.not_after)),
        ("certificate sha-256", found.fingerprint),
    ]
    for extension in parsed.extensions:
        critical = ", critical" if extension.critical else ""
        value = extension.value
        said = value.public_bytes().hex()
        if isinstance(value, x509.BasicConstraints):
            said = "no limit" if value.path_length is None else str(value.path_length)
            said = f"CA: {'yes' if value.ca else 'no'}, path length: {said}"
        number = extension.oid.dotted_string
        rows.append((_EXTENSIONS.get(number, number), f"{said}{critical}"))
    return rows


_EXTENSIONS = {str(extension): extension.name.lower().replace("_", " ") for extension in Extension}
"""Names of our own: a library's may change, and the pages of an old record may not."""


def _crl(octets: bytes) -> list[Row]:
    parsed = x509.load_der_x509_crl(octets)
    return [
        ("this update", time_text(parsed.last_update_utc)),
        ("next update", "none" if parsed.next_update_utc is None else time_text(parsed.next_update_utc)),
        *(
            (serial_hex(entry.serial_number), f"revoked {time_text(entry.revocation_date_utc)}")
            for entry in parsed
        ),
        ("sha-256", fingerprint(octets)),
    ]
