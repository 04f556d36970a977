"""The commands of a TPM 2.0 that a device's identity takes, over tpm2-pytss.

``Chip`` leaves nothing behind in the TPM that it was not told to keep: a TPM without a resource manager has
three places for objects and as many for sessions, so every one is flushed as soon as it is used.

Errors of the stack become refusals here: what has no answer is ``Unavailable``, an authorisation that fails
``NotPermitted``, anything else that a TPM refuses ``PolicyRefused`` (rule ``element``).

Sources: TPM 2.0 Library part 3 (commands); TCG EK Credential Profile 2.5 sections 2.2.1.4 and 2.2.1.5 (where
certificates are), B.6 (policies of high-range templates).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_PT, TPM2_PT_NV, TPM2_RC, TPM2_SE, TPMA_NV
from tpm2_pytss.ESAPI import ESAPI
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import (
    TPM2B_AUTH,
    TPM2B_DATA,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_NV_PUBLIC,
    TPM2B_PUBLIC,
    TPML_DIGEST,
    TPMS_NV_PUBLIC,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
)
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

from birthmark.errors import (
    NotFound,
    NotPermitted,
    PolicyRefused,
    ProofFailed,
    Refusal,
    TooLarge,
    Unavailable,
)
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["Chip"]

_ENDORSEMENT_KEYS: Mapping[KeyAlgorithm, tuple[str, ...]] = {
    KeyAlgorithm.EC_P384: ("EK-HIGH-ECC384",),
    KeyAlgorithm.EC_P256: ("EK-HIGH-ECC256", "EK-ECC256"),
    KeyAlgorithm.RSA_2048: ("EK-RSA2048",),
}
"""Templates whose certificates are looked for, in this order; the first that is there is taken."""
_POLICY_C: Mapping[int, str] = {
    TPM2_ALG.SHA256: "3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde",
    TPM2_ALG.SHA384: "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5"
    "b4947c2d73e63005eed2dc2b3593d165",
}
"""The other branch of the policy of endorsement keys of the high range (PolicyC: PolicyAuthorizeNV)."""
_NV_ATTRIBUTES = (
    TPMA_NV.AUTHREAD
    | TPMA_NV.OWNERREAD
    | TPMA_NV.AUTHWRITE
    | TPMA_NV.OWNERWRITE
    | TPMA_NV.WRITEDEFINE
    | TPMA_NV.NO_DA
)
"""Anybody reads it, and writes it until it is locked, for good."""
_FAILED_AUTHORISATION = (TPM2_RC.AUTH_FAIL, TPM2_RC.BAD_AUTH, TPM2_RC.LOCKOUT)
_NULL_SCHEME = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
_LAYER = 0xFF0000
"""Bits of a return code that say which layer it is of; 0 is the TPM's own (TSS 2.0 overview section 5.1)."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Make refusals of what the stack raises."""
    try:
        yield
    except TSS2_Exception as wrong:
        raise _refusal(what, wrong) from wrong


def _refusal(what: str, wrong: TSS2_Exception) -> Refusal:
    if wrong.rc & _LAYER:
        return Unavailable(f"the tpm does not answer while it is to {what}: {wrong}")
    if wrong.error in _FAILED_AUTHORISATION:
        return NotPermitted(f"the tpm wants an authorisation to {what}: {wrong}")
    if wrong.error & TPM2_RC.WARN == TPM2_RC.WARN and not wrong.fmt1:
        return Unavailable(f"the tpm cannot {what} now: {wrong}")
    return PolicyRefused("element", f"the tpm refuses to {what}: {wrong}")


class Chip:
    """One TPM.  Not for several threads at once."""

    def __init__(self, tcti: str) -> None:
        """Open a TPM.

        Args:
            tcti: how to reach it, as the TSS spells it, e.g. ``device:/dev/tpmrm0``.

        Raises:
            Unavailable: it cannot be reached.
        """
        try:
            self._esys = ESAPI(tcti)
        except (TSS2_Exception, RuntimeError, OSError) as wrong:
            raise Unavailable(f"there is no tpm behind {tcti!r}: {wrong}") from wrong
        try:
            self._input, self._nv = self._sizes()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give it back."""
        self._esys.close()

    def _sizes(self) -> tuple[int, int]:
        """Return how many octets it hashes, and writes to NV, at once."""
        found = []
        with _translated("say what it can"):
            for name in (TPM2_PT.INPUT_BUFFER, TPM2_PT_NV.BUFFER_MAX):
                _, said = self._esys.get_capability(TPM2_CAP.TPM_PROPERTIES, int(name), 1)
                found.append(int(said.data.tpmProperties[0].value))
        return found[0], found[1]

    # --- keys ------------------------------------------------------------------------------------------

    def public(self, handle: int) -> bytes | None:
        """Return the public area (TPMT_PUBLIC) of a persistent key; None if there is none."""
        with _translated("show a key"), self._persistent(handle) as key:
            if key is None:
                return None
            public, _, _ = self._esys.read_public(key)
            return bytes(public.publicArea.marshal())

    def make(self, handle: int, template: bytes) -> bytes:
        """Make a primary key of the endorsement hierarchy, keep it under a handle, return its public area.

        A key that was there before goes.

        Args:
            handle: persistent, of the owner's: 81000000 to 817FFFFF.
            template: TPMT_PUBLIC.
        """
        with _translated("make a key"):
            public, _ = TPM2B_PUBLIC.unmarshal(len(template).to_bytes(2, "big") + template)
            made, area, *_ = self._esys.create_primary(None, public, ESYS_TR.ENDORSEMENT)
            with self._flushed(made):
                with self._persistent(handle) as old:
                    if old is not None:
                        self._esys.evict_control(ESYS_TR.OWNER, old, handle)
                self._forget(self._esys.evict_control(ESYS_TR.OWNER, made, handle))
            return bytes(area.publicArea.marshal())

    def sign(self, handle: int, hash_algorithm: int, message: bytes) -> bytes:
        """Sign a message and return the TPMT_SIGNATURE.

        The TPM hashes for itself: a restricted key signs only what comes with the TPM's word that it does not
        begin like something a TPM generated (part 1 section 25.1.3).

        Raises:
            NotFound: there is no such key.
        """
        with _translated("sign"), self._persistent(handle) as key:
            if key is None:
                raise NotFound(f"the tpm has no key under {handle:08x}")
            digest, ticket = self._hash(hash_algorithm, message)
            return bytes(self._esys.sign(key, digest, _NULL_SCHEME, ticket).marshal())

    def _hash(self, algorithm: int, message: bytes) -> Any:
        """Return digest and ticket."""
        if len(message) <= self._input:
            return self._esys.hash(message, algorithm, ESYS_TR.ENDORSEMENT)
        sequence = self._esys.hash_sequence_start(b"", algorithm)
        last = (len(message) - 1) // self._input * self._input
        for at in range(0, last, self._input):
            self._esys.sequence_update(sequence, message[at : at + self._input])
        return self._esys.sequence_complete(sequence, message[last:], ESYS_TR.ENDORSEMENT)

    def certify(self, handle: int, by: int, nonce: bytes) -> tuple[bytes, bytes]:
        """Have one key certify another; return TPMS_ATTEST and TPMT_SIGNATURE."""
        with (
            _translated("certify a key"),
            self._persistent(handle) as key,
            self._persistent(by) as signer,
        ):
            if key is None or signer is None:
                raise NotFound(f"the tpm has no keys under {handle:08x} and {by:08x}")
            attest, signature = self._esys.certify(key, signer, TPM2B_DATA(nonce), _NULL_SCHEME)
            return bytes(attest), bytes(signature.marshal())

    # --- the endorsement key ---------------------------------------------------------------------------

    def endorsement_certificate(self, algorithm: KeyAlgorithm | None) -> tuple[str, bytes]:
        """Return which endorsement key is certified, and the contents of its NV index: there may be filling.

        Args:
            algorithm: of the endorsement key; None for any.

        Raises:
            NotFound: the TPM has no such certificate where TCG puts it.
        """
        for kind, names in _ENDORSEMENT_KEYS.items():
            for name in names if algorithm in (None, kind) else ():
                found, _ = self._endorsement(name)
                if found:
                    return name, found
        wanted = ", ".join(_ENDORSEMENT_KEYS) if algorithm is None else algorithm
        raise NotFound(f"the tpm holds no certificate for an endorsement key of {wanted}")

    def _endorsement(self, kind: str) -> tuple[bytes | None, TPM2B_PUBLIC | None]:
        with _translated("show its endorsement key's certificate"), suppress(NoSuchIndex, ValueError):
            found: tuple[bytes | None, TPM2B_PUBLIC] = create_ek_template(kind, self._read_or_raise)
            return found
        return None, None

    def _read_or_raise(self, index: int) -> bytes:
        if (found := self.read(index)) is None:
            raise NoSuchIndex(index)
        return found

    def activate(self, kind: str, handle: int, id_object: bytes, encrypted_secret: bytes) -> bytes:
        """Open a credential for a key and the endorsement key, and return the secret.

        Raises:
            ProofFailed: it is for another key, or another TPM.
        """
        _, template = self._endorsement(kind)
        if template is None:
            raise NotFound(f"the tpm has no certificate of its {kind} any more")
        with _translated("open a credential"), self._persistent(handle) as key:
            if key is None:
                raise NotFound(f"the tpm has no key under {handle:08x}")
            ek, public, *_ = self._esys.create_primary(None, template, ESYS_TR.ENDORSEMENT)
            with self._flushed(ek), self._policy(public) as session:
                try:
                    secret = self._esys.activate_credential(
                        key,
                        ek,
                        TPM2B_ID_OBJECT.unmarshal(id_object)[0],
                        TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)[0],
                        session1=ESYS_TR.PASSWORD,
                        session2=session,
                    )
                except TSS2_Exception as wrong:
                    if wrong.rc & _LAYER:
                        raise
                    raise ProofFailed(f"the credential is not for this tpm and this key: {wrong}") from wrong
                return bytes(secret)

    @contextmanager
    def _policy(self, public: TPM2B_PUBLIC) -> Iterator[ESYS_TR]:
        """Yield a session in which an endorsement key may be used by who is authorised for its hierarchy."""
        algorithm = public.publicArea.nameAlg
        none = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        session = self._esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, none, algorithm)
        try:
            self._esys.policy_secret(ESYS_TR.ENDORSEMENT, session)
            reached = bytes(self._esys.policy_get_digest(session))
            if reached != bytes(public.publicArea.authPolicy) and algorithm in _POLICY_C:
                branches = TPML_DIGEST([reached, bytes.fromhex(_POLICY_C[algorithm])])
                self._esys.policy_or(session, branches)
            yield session
        finally:
            with suppress(TSS2_Exception):  # it went with the command it was used for
                self._esys.flush_context(session)

    # --- non-volatile memory ---------------------------------------------------------------------------

    def read(self, index: int) -> bytes | None:
        """Return what is in an NV index; None if it is not there, or was not written whole."""
        with _translated("read its memory"), self._index(index) as found:
            if found is None:
                return None
            public, _ = self._esys.nv_read_public(found)
            if not public.nvPublic.attributes & TPMA_NV.WRITTEN:
                return None
            size, octets = public.nvPublic.dataSize, b""
            while len(octets) < size:
                part = min(self._nv, size - len(octets))
                octets += bytes(self._esys.nv_read(found, part, len(octets)))
            return octets

    def write(self, index: int, octets: bytes) -> None:
        """Put octets into an NV index that is made anew; what was there goes first.

        Raises:
            TooLarge: the TPM has no room for them.
        """
        public = TPM2B_NV_PUBLIC(
            nvPublic=TPMS_NV_PUBLIC(
                nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=_NV_ATTRIBUTES, dataSize=len(octets)
            )
        )
        with _translated("write to its memory"):
            with self._index(index) as old:
                if old is not None:
                    self._esys.nv_undefine_space(old, ESYS_TR.OWNER)
            try:
                made = self._esys.nv_define_space(TPM2B_AUTH(), public, ESYS_TR.OWNER)
            except TSS2_Exception as wrong:
                if wrong.error in (TPM2_RC.SIZE, TPM2_RC.NV_SIZE, TPM2_RC.NV_SPACE):
                    raise TooLarge(f"the tpm has no room for {len(octets)} octets: {wrong}") from wrong
                raise
            try:
                for at in range(0, len(octets), self._nv):
                    self._esys.nv_write(made, octets[at : at + self._nv], at)
            finally:
                self._forget(made)

    def locked(self, index: int) -> bool:
        """Return whether an NV index is locked for good."""
        with _translated("look at its memory"), self._index(index) as found:
            if found is None:
                return False
            public, _ = self._esys.nv_read_public(found)
            return bool(public.nvPublic.attributes & TPMA_NV.WRITELOCKED)

    def lock(self, index: int) -> None:
        """Let nobody write an NV index any more; one that is not there stays so."""
        with _translated("lock its memory"), self._index(index) as found:
            if found is not None:
                self._esys.nv_write_lock(found)

    # --- handles ---------------------------------------------------------------------------------------

    @contextmanager
    def _persistent(self, handle: int) -> Iterator[ESYS_TR | None]:
        """Yield the stack's handle of what a TPM keeps under a handle; None if there is nothing."""
        _, said = self._esys.get_capability(TPM2_CAP.HANDLES, handle, 1)
        if handle not in [int(one) for one in said.data.handles]:
            yield None
            return
        found = self._esys.tr_from_tpmpublic(handle)
        try:
            yield found
        finally:
            self._forget(found)

    _index = _persistent

    @contextmanager
    def _flushed(self, handle: ESYS_TR) -> Iterator[None]:
        try:
            yield
        finally:
            self._esys.flush_context(handle)

    def _forget(self, handle: ESYS_TR) -> None:
        """Give back what the stack, not the TPM, knows of a handle; it may be gone with what it stood for."""
        with suppress(TSS2_Exception):
            self._esys.tr_close(handle)
