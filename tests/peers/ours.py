"""The three devices of ``small`` with certificates, CRLs and OCSP responses of Birthmark's own making.

Certificates come from profiles, permitted and signed as the service does it; lists and responses from
``pki.crl`` and ``pki.ocsp``.  Nothing here is wrong by itself: a stranger's signature is one that another key
gave.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache

from birthmark.pki import crl, issuance, lint, ocsp, profiles
from birthmark.pki.crl import Covers, CRLScope, CRLTerms
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.ocsp import Responder, SingleResponse
from birthmark.pki.revocation import CertStatus, ReasonCode, revoked_entry
from tests.peers.small import AT, DAY, HELD, SHARDS, STOLEN, WELL
from tests.pki.sample import VARIABLES, private_key, signed_by, spki
from tests.support.chains import chain_of
from tests.support.checkers.values import Chain

__all__ = ["Ours", "ours"]

_REVOKED = {STOLEN: ReasonCode.KEY_COMPROMISE, HELD: ReasonCode.CERTIFICATE_HOLD}
_RESPONDER = KeyLabel("responder")


class Ours:
    """An authority of ours with keys of one algorithm, its responder, and its devices."""

    def __init__(self, algorithm: KeyAlgorithm) -> None:
        # From before the devices, so that answers of nine days ago are its own, too.
        self._path = chain_of("ocsp-responder", algorithm=algorithm, not_before=AT - 20 * DAY)
        self.issuer = self._path.issuers[0]
        self.responder_der = self._path.leaf_der
        self.responder = Responder.from_certificate(_RESPONDER, self.responder_der, self.issuer)
        self._keys = {
            self.issuer.key_label: self._path.issuer_keys[0],
            _RESPONDER: self._path.leaf_key,
        }

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """What a key store answers."""
        return signed_by(self._keys[label], message)

    def sign_as_a_stranger(self, label: KeyLabel, message: bytes) -> bytes:
        """The same with a key of the same kind that nobody certified."""
        return signed_by(private_key(self.issuer.key_algorithm, "stranger"), message)

    def chain(self, serial: int, responder: str | None = None) -> Chain:
        """The path of a device whose certificate names its shard and, if given, a responder."""
        located = {"crl_url": SHARDS[serial % 2]} | ({"ocsp_url": responder} if responder else {})
        values = VARIABLES | {"hardware_id": f"DEVICE-{serial}"} | located
        template = issuance.compile_template(profiles.load("ldevid"), self.issuer, values)
        tbs = template.fill(
            serial_number=serial,
            subject_public_key_info=spki(KeyAlgorithm.EC_P256, f"device {serial}"),
            not_before=AT - 100 * DAY,
            variables={},
        )
        leaf = issuance.sign_certificate(lint.permit(tbs), self.sign)
        return Chain(root=self._path.root_der, between=self._path.intermediates, leaf=leaf)

    def crl(
        self,
        *,
        shard: int | None = None,
        at: datetime = AT,
        base: datetime | None = None,
        delta: bool = False,
        revoked: Sequence[int] = tuple(_REVOKED),
        stranger: bool = False,
    ) -> bytes:
        """A list for a day of ``at``: of everything, or of a shard.

        ``delta`` says where one to it is; ``base`` makes it one, to the list of that time.
        """
        made = at - DAY / 2
        scope = CRLScope(
            covers=Covers.ALL if shard is None else Covers.USERS,
            distribution_point=None if shard is None else SHARDS[shard],
            base=None if base is None else crl.crl_number(base - DAY / 2),
            freshest_crl="http://pki.example/crl/delta.crl" if delta else None,
        )
        terms = CRLTerms(
            issuer=self.issuer,
            scope=scope,
            number=crl.crl_number(made),
            this_update=made,
            next_update=at + DAY / 2,
        )
        entries = [
            revoked_entry(serial, AT - DAY, _REVOKED[serial])
            for serial in revoked
            if shard is None or serial % 2 == shard
        ]
        return crl.assemble_crl(terms, entries, self.sign_as_a_stranger if stranger else self.sign)

    def beforehand(
        self, serial: int, *, unknown: bool = False, at: datetime = AT, stranger: bool = False
    ) -> bytes:
        """A response signed before anybody asked."""
        names = ocsp.issuer_ids(self.issuer.subject, self.issuer.subject_public_key_info)
        asked = ocsp.cert_id(names[0], serial)
        return self._say(asked, None, unknown=unknown, at=at, stranger=stranger)

    def answer(
        self, request: bytes, *, unknown: bool = False, at: datetime = AT, stranger: bool = False
    ) -> bytes:
        """What the responder says to a request."""
        asked = ocsp.decode_request(request)
        (wanted,) = asked.cert_ids
        known = ocsp.issuer_ids(self.issuer.subject, self.issuer.subject_public_key_info)
        if wanted.issuer not in known:
            return ocsp.error_response(ocsp.ResponseStatus.UNAUTHORIZED)
        return self._say(wanted, asked.nonce, unknown=unknown, at=at, stranger=stranger)

    def _say(
        self, about: ocsp.CertID, nonce: bytes | None, *, unknown: bool, at: datetime, stranger: bool
    ) -> bytes:
        reason = _REVOKED.get(about.serial_number)
        status = CertStatus.REVOKED if reason else CertStatus.GOOD
        if unknown or about.serial_number not in {WELL, STOLEN, HELD}:
            status, reason = CertStatus.UNKNOWN, None
        single = SingleResponse(
            cert_id=about,
            status=status,
            this_update=at - DAY / 2,
            next_update=at + DAY / 2,
            revoked_at=min(AT - DAY, at - DAY) if reason else None,
            reason=reason or ReasonCode.UNSPECIFIED,
        )
        tbs = ocsp.response_data(self.responder, [single], produced_at=at, nonce=nonce)
        return ocsp.sign_response(ocsp.permit(tbs), self.sign_as_a_stranger if stranger else self.sign)


@cache
def ours(algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256) -> Ours:
    """The one of this algorithm."""
    return Ours(algorithm)
