"""What the applications behind the gateway are told of a device: a token that they can verify (SPEC H3).

A token is for one audience and lives for minutes.  It is bound to the device's certificate (``cnf``, RFC 8705
section 3.1): where the application sees that certificate, it can hold one against the other; where it does
not, it must keep the token as secret as a password for as long as it lives.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from birthmark.floor.realm import Realm
from birthmark.pki import jwt
from birthmark.pki.keys import KeyLabel
from birthmark.ports import Entropy, KeyStore, UseCase
from birthmark.secret import SecretBytes
from birthmark.services.visits import Welcome

__all__ = ["TokenTerms", "Tokens"]

_ID_OCTETS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTerms:
    """What tokens say, and which keys sign them."""

    keys: tuple[KeyLabel, ...]
    """Labels: the first signs; the others' tokens are still good, or will be."""
    audience: str
    life: timedelta


class Tokens:
    """Gives tokens; for any thread."""

    def __init__(self, realm: Realm, keys: KeyStore, entropy: Entropy, terms: TokenTerms) -> None:
        """Look at the keys once.

        Raises:
            errors.NotFound: the key store has no such key.
            errors.MalformedRequest: a key is of an algorithm that signs no tokens.
            errors.Unavailable: the key store does not answer.
        """
        self._realm = realm
        self._keys = keys
        self._entropy = entropy
        self._terms = terms
        self._public = keys.public_key(terms.keys[0])
        self.key_set: dict[str, Any] = {"keys": [jwt.jwk(keys.public_key(one)) for one in terms.keys]}
        """JWK Set (RFC 7517 section 5): with what others verify tokens."""

    def give(self, welcome: Welcome) -> UseCase[SecretBytes]:
        """Return a token for a device that was let in just now.

        Raises:
            errors.Unavailable: the key cannot sign now.
        """
        issued = int(welcome.at.timestamp())
        claims = {
            "iss": self._realm.name,
            "sub": welcome.device,
            "aud": self._terms.audience,
            "iat": issued,
            "exp": issued + int(self._terms.life.total_seconds()),
            "jti": self._entropy.token(_ID_OCTETS).hex(),
            "cnf": {"x5t#S256": jwt.base64url(bytes.fromhex(welcome.certificate_sha256))},
            "environment": str(self._realm.environment),
            "authority": welcome.authority,
        }
        label = self._terms.keys[0]
        token = jwt.sign(claims, self._public, lambda message: self._keys.sign(label, message))
        yield from ()  # the store is asked nothing; but a token that signs may take its time, and has a place
        return SecretBytes(token.encode("ascii"))
