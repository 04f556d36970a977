"""The bodies of the station plane, as they stand in its OpenAPI description.

Binary values are base64 (RFC 4648 section 4), fingerprints and serial numbers lower-case hex.  Certificates
and keys are PEM, so that a file written from an answer is already what other programs read.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from birthmark.element.injection import KeySetPhase
from birthmark.floor.devices import DeviceState

__all__ = [
    "Attest",
    "AttestResult",
    "Attested",
    "Checkpoint",
    "Contact",
    "DeviceStatus",
    "Dialogue",
    "DialogueStep",
    "Disposal",
    "ElementCommand",
    "ElementCommands",
    "ElementResponses",
    "ElementStatus",
    "FurtherCertificate",
    "FurtherProof",
    "GangInject",
    "GangInjectResult",
    "GangIssue",
    "GangIssueResult",
    "GangProve",
    "GangProveResult",
    "Issue",
    "IssueResult",
    "KeySet",
    "Me",
    "Problem",
    "Prove",
    "ProveResult",
    "RunStatusView",
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


IdempotencyKey = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_.:-]{1,64}$",
        description="Chosen by the client; the same key with the same request always gets the same answer.",
    ),
]
HardwareId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        pattern=r"^[ -~]+$",
        description="VIN, EUI-64, EID or serial, as the run wants it.",
    ),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Base64 = Annotated[str, Field(pattern=r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")]
Reason = Annotated[str, AfterValidator(_printable), Field(min_length=1, max_length=200)]
AttemptId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Problem(BaseModel):
    """A refusal (RFC 9457)."""

    type: str = Field(description="urn:birthmark:problem: and the code")
    title: str
    status: int
    detail: str
    instance: str = Field(description="Names this occurrence; the same id stands in the service's log.")
    code: str
    retryable: bool = Field(description="The same request, with the same idempotency key, may succeed later.")
    rule: str | None = Field(default=None, description="For policy-refused: the rule that forbids it.")


_CSR = Field(
    max_length=16384,
    description="PKCS#10 (PEM or base64 DER) for a key born in the device; without it, delivered.",
)
MOST_FURTHER = 7


class Attest(_Body):
    """Say what a device's TPM 2.0 has, and ask what it has to answer; for runs of devices with a TPM."""

    hardware_id: HardwareId
    ek_certificate: Base64 = Field(
        max_length=5464, description="X.509 certificate of the endorsement key (DER)."
    )
    ek_chain: Annotated[
        list[Annotated[Base64, Field(max_length=5464)]],
        Field(max_length=4, description="Authorities above it (DER each), where the TPM has them."),
    ] = []
    iak: Base64 = Field(max_length=2732, description="TPMT_PUBLIC of the attestation key.")
    idevid: Base64 = Field(max_length=2732, description="TPMT_PUBLIC of the identity key.")


class AttestResult(_Body):
    """What the TPM has to answer, within a quarter of an hour: the answer goes with the issue request."""

    attestation: AttemptId = Field(description="The attempt will have the same id.")
    id_object: Base64 = Field(
        description="TPM2B_ID_OBJECT for TPM2_ActivateCredential with the attestation key and the endorsement"
        " key."
    )
    encrypted_secret: Base64 = Field(description="TPM2B_ENCRYPTED_SECRET for the same.")
    nonce: Base64 = Field(
        description="Qualifying data for TPM2_Certify of the identity key with the attestation key."
    )


class Attested(_Body):
    """What a device's TPM answered."""

    attestation: AttemptId
    secret: Base64 = Field(max_length=88, description="What TPM2_ActivateCredential gave out.")
    certify_info: Base64 = Field(max_length=2732, description="TPMS_ATTEST of the identity key.")
    certify_signature: Base64 = Field(max_length=2732, description="TPMT_SIGNATURE over it.")


class Issue(_Body):
    """Ask for a device's identity."""

    hardware_id: HardwareId
    idempotency_key: IdempotencyKey
    csr: Annotated[str | None, _CSR] = None
    further_csrs: Annotated[
        list[Annotated[str, _CSR]],
        Field(
            max_length=MOST_FURTHER,
            description="One for each further profile of the run, in their order; none if delivered.",
        ),
    ] = []
    attested: Attested | None = Field(
        default=None, description="For a run of devices with a TPM: what it answered to /v1/runs/…/attest."
    )
    envelope: bool = Field(
        default=False,
        strict=True,
        description="Without csr: deliver the keys in envelopes to the key of the client's certificate, which"
        " has to be for key agreement (EC) or key encipherment (RSA).",
    )


_ENVELOPE = Field(
    description="Asked for by envelope, in place of private_key: PKCS#8 in CMS AuthEnvelopedData, PEM.",
)


class FurtherCertificate(_Body):
    """A further certificate of the same device, for a key of its own."""

    profile: str
    certificate: str = Field(description="PEM.")
    private_key: str | None = Field(default=None, description="PKCS#8 PEM of a delivered key.")
    private_key_envelope: Annotated[str | None, _ENVELOPE] = None


MOST_RESPONSES = 128
Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})*$")]
StepNumber = Annotated[int, Field(strict=True, ge=0, le=2**31)]


class ElementCommand(_Body):
    """A command for a secure element, and what has to come back for the next one to be sent."""

    command: Hex = Field(description="C-APDU (ISO/IEC 7816-4).")
    status_words: list[Annotated[str, Field(pattern=r"^[0-9a-f]{4}$")]] = Field(description="One of these.")
    response_sha256: Sha256 | None = Field(
        default=None, description="And the R-APDU, status word included, has this hash; null for any."
    )


class ElementCommands(_Body):
    """One step of the dialogue with a secure element."""

    step: StepNumber
    commands: list[ElementCommand]
    last: bool = Field(description="The responses come with the proof.")


class ElementResponses(_Body):
    """What a secure element answered to one step."""

    step: StepNumber = Field(description="Of the commands; 0, without responses, begins the dialogue anew.")
    responses: Annotated[
        list[Annotated[Hex, Field(min_length=4, max_length=2 * 65538)]],
        Field(
            max_length=MOST_RESPONSES,
            description="R-APDUs, as many as there were before the element stopped.",
        ),
    ]


class IssueResult(_Body):
    """A certificate to install, and the challenge to sign afterwards."""

    device: str = Field(
        description="Kind and hardware id, e.g. vin:1M8GDM9AXKP042788 or system-title:4D4D4D0000000001."
    )
    attempt: AttemptId
    state: Literal["issued"] = "issued"
    certificate: str = Field(description="PEM.")
    chain: list[str] = Field(description="The authorities above it, PEM each, the root not included.")
    challenge: Base64 = Field(description="32 random octets.")
    private_key: str | None = Field(
        default=None,
        description="PKCS#8 PEM of a delivered key: sent once, kept nowhere.",
    )
    private_key_envelope: Annotated[str | None, _ENVELOPE] = None
    further: list[FurtherCertificate] = Field(
        default=[],
        description="For the run's further profiles, in their order; each is proved with the same challenge.",
    )
    element: ElementCommands | None = Field(
        default=None,
        description="The first commands for the device's secure element, if a key set is put into it; null if"
        " it has none, or its dialogue is to be begun by /v1/inject.",
    )


_Signature = Annotated[
    Base64,
    Field(
        max_length=1000,
        description="By the device's key over 'birthmark/proof/v1', attempt, certificate, challenge.",
    ),
]


class FurtherProof(_Body):
    """Show that the device holds the key of a further certificate."""

    certificate_sha256: Sha256
    signature: _Signature


class Prove(_Body):
    """Show that the device holds its key."""

    attempt: AttemptId
    certificate_sha256: Sha256 = Field(description="Of the certificate (DER) as read back from the device.")
    signature: _Signature
    further: Annotated[
        list[FurtherProof],
        Field(max_length=MOST_FURTHER, description="One for each further certificate, in their order."),
    ] = []
    element: ElementResponses | None = Field(
        default=None, description="For a run that puts a key set into a secure element: to its last commands."
    )
    idempotency_key: IdempotencyKey


class Dialogue(_Body):
    """Carry on the dialogue with a device's secure element."""

    attempt: AttemptId
    element: ElementResponses


class DialogueStep(_Body):
    """What to send to the element next."""

    attempt: AttemptId
    element: ElementCommands


class Consistency(_Body):
    """What shows that the log only grew (RFC 6962 section 2.1.2)."""

    since: int = Field(description="Size of the earlier checkpoint.")
    proof: list[Base64] = Field(description="Hashes, to the size of the later one; none if that is the same.")


class ProveResult(_Body):
    """The device may leave the line."""

    device: str
    attempt: AttemptId
    state: Literal["released"] = "released"
    token: str = Field(
        description="Release token: C2SP .tlog-proof, checked offline with the log's public key."
    )
    consistency: list[Consistency] = Field(
        default=[],
        description="From the checkpoint that was named to the token's; none if it is smaller. In a gang one"
        " token under the newest checkpoint has it for all.",
    )


class GangIssue(_Body):
    """Ask for many identities at once; each succeeds or fails alone."""

    devices: Annotated[list[Issue], Field(min_length=1, max_length=512)]


class GangProve(_Body):
    """Prove many devices at once; each succeeds or fails alone."""

    proofs: Annotated[list[Prove], Field(min_length=1, max_length=512)]


class GangInject(_Body):
    """Carry on many dialogues at once; each succeeds or fails alone."""

    dialogues: Annotated[list[Dialogue], Field(min_length=1, max_length=512)]


class GangInjectResult(_Body):
    """One result for each dialogue, in the order of the request."""

    results: list[DialogueStep | Problem]


class GangIssueResult(_Body):
    """One result for each device, in the order of the request."""

    results: list[IssueResult | Problem]


class GangProveResult(_Body):
    """One result for each proof, in the order of the request."""

    results: list[ProveResult | Problem]


class Disposal(_Body):
    """Hold, rework or scrap a device."""

    reason: Reason
    idempotency_key: IdempotencyKey


class FurtherStatus(_Body):
    """A further certificate of a device."""

    profile: str
    certificate: str = Field(description="Serial number (hex).")
    certificate_sha256: str
    revoked: str | None = Field(description="Why it is revoked; null while it is good.")


class ElementStatus(_Body):
    """How far the key set of a device's secure element has come, as far as is known."""

    profile: str
    phase: KeySetPhase
    kvn: int | None = Field(
        description="Key version number of the final set; null where the service does not know the profile."
    )
    master: str = Field(description="Label of the master key of the final set.")
    key_diversification_data: str | None = Field(description="Names the chip (hex); null before it was seen.")
    attempt: str = Field(description="The attempt under which it was last spoken to.")
    tries: int = Field(description="Dialogues of that attempt that broke off.")
    failures: int = Field(description="Authentications of unknown outcome since the last that was accepted.")
    reason: str | None = Field(description="Why the last dialogue broke off, or why the device is held.")


class DeviceStatus(_Body):
    """Where a device stands."""

    device: str
    state: DeviceState
    run: str
    attempt: str
    attempts: int
    reason: str | None
    certificate: str | None = Field(description="Serial number of its certificate (hex).")
    certificate_sha256: str | None
    revoked: str | None = Field(description="Why that certificate is revoked; null while it is good.")
    further: list[FurtherStatus] = Field(
        default=[], description="For the run's further profiles, in their order."
    )
    release_leaf: int | None = Field(description="Index of the release in the log.")
    element: ElementStatus | None = Field(
        default=None, description="Its secure element that gets a key set; null before it was spoken to."
    )


class Me(_Body):
    """Who the client is, as the service sees it."""

    client: str
    site: str
    line: str
    realm: str
    environment: str
    last_seq: int = Field(description="The highest request number seen from this client; go on from there.")
    vkey: str = Field(description="The log's verifier key (C2SP signed-note).")
    development: bool = Field(description="True if the authorities' keys are in a software store.")
    max_gang: int


class RunStatusView(_Body):
    """A run and its counters."""

    run: str
    product: str
    batch: str
    profile: str
    status: str
    quantity: int
    admitted: int
    released: int
    held: int
    scrapped: int
    not_before: str
    not_after: str
    hardware_id_kind: str
    origins: list[str]
    further_profiles: list[str] = Field(
        description="Each device gets one more certificate of each of these, for a key of its own."
    )
    element: str | None = Field(
        default=None, description="Profile of the secure element that each device has; null for none."
    )
    firmware: str | None = Field(
        default=None, description="Reference of the firmware that the devices carry; null for none named."
    )
    purpose: str = Field(
        default="identity",
        description="identity, or operational: it admits nothing and certifies released devices.",
    )
    looked_at: bool = Field(
        default=False, description="A person looks at each request by EST or CMP before it is granted."
    )


class Checkpoint(_Body):
    """The log's newest checkpoint."""

    checkpoint: str = Field(description="C2SP signed note.")
    consistency: list[Consistency] = Field(
        default=[], description="For each earlier size asked about; none for a size the log does not have."
    )


class RenewSelf(_Body):
    """Ask for the client's own next certificate."""

    csr: str = Field(max_length=16384, description="PKCS#10 (PEM or base64 DER) for a new key.")


class Renewed(_Body):
    """The client's next certificate."""

    client: str
    certificate: str = Field(description="PEM.")
    chain: list[str] = Field(
        description="Authorities above it, PEM each; the issuer first, without the root."
    )


class ServiceRoot(_Body):
    """Who signs for the service: to be compared with the fingerprint in the code."""

    root: str = Field(description="PEM.")


class Contact(_Body):
    """A device that was let in."""

    device: str
    realm: str
    environment: str
    authority: str = Field(description="Who certified it.")
    status: str
    first_seen_at: str
    time: str = Field(description="Of the service; devices without a clock may set theirs.")
    token: str | None = Field(description="For the applications behind (RFC 7519); null if none are given.")
    gateway_pin: str = Field(description="SHA-256 of the gateway's SubjectPublicKeyInfo (base64).")
    next_gateway_pin: str | None = Field(description="Of the key it is going to have; null if not decided.")
    ask_again_seconds: int


class KeySet(_Body):
    """With what tokens are verified (RFC 7517 section 5)."""

    keys: list[dict[str, str]]


class Join(_Body):
    """Come in by a one-time code."""

    code: str = Field(pattern=r"^[0-9a-f]{32}$", description="The secret half of the code.")
    csr: str = Field(max_length=16384, description="PKCS#10 (PEM or base64 DER) for the station's own key.")


class Joined(_Body):
    """All that a station has to know."""

    name: str
    certificate: str = Field(description="PEM.")
    chain: list[str] = Field(
        description="Authorities above it, PEM each; the issuer first, without the root."
    )
    device_anchors: str = Field(description="Trust anchors of devices, PEM.")
    vkey: str = Field(description="The log's verifier key (C2SP signed-note).")
    url: str = Field(description="Where the station plane is.")
