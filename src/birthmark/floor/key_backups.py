"""The file that holds a wrapped key: what it says of itself, in the one spelling of log entries (SPEC B5).

It holds no secret that its key-encryption key does not guard, and all that a custodian needs to know what it
is without a database: which key, wrapped how and under which key, where and when.  Its SHA-256 is in the log,
so a file that was changed, or that nobody made here, is found out.
"""

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from birthmark import errors
from birthmark.floor.key_assets import KeyPurpose
from birthmark.ledger.entry import canonical, parse, parse_time, time_text
from birthmark.pki.algorithms import recognise
from birthmark.pki.keys import KeyAlgorithm, check_label

__all__ = ["BACKUP_LIMIT", "FORMAT", "KeyBackup"]

FORMAT = "birthmark-key-backup/v1"
WRAPPING = "PKCS#8 under AES-256 key wrap with padding (RFC 5649)"
BACKUP_LIMIT = 65_536
"""The longest backup file we read, in octets."""

_FIELDS = {
    "format",
    "wrapping",
    "realm",
    "label",
    "purpose",
    "algorithm",
    "users",
    "subject_public_key_info",
    "store",
    "kek",
    "kek_check_value",
    "wrapped",
    "made_at",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyBackup:
    """One wrapped private key."""

    realm: str
    label: str
    purpose: KeyPurpose
    algorithm: KeyAlgorithm
    users: str
    subject_public_key_info: bytes
    """DER."""
    store: str
    """Where it was wrapped."""
    kek: str
    """Label of the key-encryption key, there."""
    kek_check_value: str
    wrapped: bytes
    made_at: datetime
    environment: str | None = None
    """Of the realm; None in files of before they said it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo, in hexadecimal digits."""
        return sha256(self.subject_public_key_info).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the file: canonical JSON."""
        return canonical(
            {
                "format": FORMAT,
                "wrapping": WRAPPING,
                "realm": self.realm,
                "label": self.label,
                "purpose": str(self.purpose),
                "algorithm": str(self.algorithm),
                "users": self.users,
                "subject_public_key_info": b64encode(self.subject_public_key_info).decode(),
                "store": self.store,
                "kek": self.kek,
                "kek_check_value": self.kek_check_value,
                "wrapped": b64encode(self.wrapped).decode(),
                "made_at": time_text(self.made_at),
            }
            | ({} if self.environment is None else {"environment": self.environment})
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "KeyBackup":
        """Read a file.

        Raises:
            errors.MalformedRequest: it is no backup of a key, or not byte for byte as we write it.
        """
        if len(data) > BACKUP_LIMIT:
            raise errors.MalformedRequest("a backup of a key is not that long")
        said = parse(data)
        if said.get("format") != FORMAT or set(said) - {"environment"} != _FIELDS:
            raise errors.MalformedRequest(f"not a {FORMAT} file")
        text = {name: value for name, value in said.items() if isinstance(value, str)}
        if len(text) != len(said) or text["wrapping"] != WRAPPING:
            raise errors.MalformedRequest("the backup is wrapped in another way than ours")
        try:
            purpose, algorithm = KeyPurpose(text["purpose"]), KeyAlgorithm(text["algorithm"])
            spki = b64decode(text["subject_public_key_info"], validate=True)
            wrapped = b64decode(text["wrapped"], validate=True)
        except (ValueError, NotBase64) as wrong:
            raise errors.MalformedRequest("the backup's contents are not what a backup holds") from wrong
        if recognise(spki) is not algorithm:
            raise errors.MalformedRequest(f"the backup's public key is no {algorithm} key")
        check_label(text["label"])
        check_label(text["kek"])
        return cls(
            realm=text["realm"],
            label=text["label"],
            purpose=purpose,
            algorithm=algorithm,
            users=text["users"],
            subject_public_key_info=spki,
            store=text["store"],
            kek=text["kek"],
            kek_check_value=text["kek_check_value"],
            wrapped=wrapped,
            made_at=parse_time(text["made_at"]),
            environment=text.get("environment"),
        )
