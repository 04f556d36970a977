"""Bodies of the station plane to the requests of use cases, and their results to bodies."""

import base64
import binascii
from collections.abc import Sequence

from birthmark.edge.http import models
from birthmark.edge.http.attestation import attested
from birthmark.pki.certificates import to_pem
from birthmark.services.dialogues import Commands, Responses
from birthmark.services.injection import InjectRequest
from birthmark.services.issue import IssueRequest
from birthmark.services.prove import ProveRequest, Released

__all__ = [
    "cms_pem",
    "commands_of",
    "csr_octets",
    "dialogue_step",
    "inject_request",
    "issue_request",
    "prove_request",
    "prove_result",
    "responses_of",
]


def cms_pem(envelope: bytes | None) -> str | None:
    """Return an envelope (CMS, DER) in PEM (RFC 7468 section 9), if there is one."""
    return None if envelope is None else to_pem(envelope, "CMS")


def csr_octets(text: str) -> bytes:
    """Return the octets of a request, PEM or base64; none for what is neither."""
    try:
        return text.encode("ascii") if "-----BEGIN" in text else base64.b64decode(text, validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        return b""  # the use case refuses it, under its idempotency key


def issue_request(body: models.Issue) -> IssueRequest:
    """Read an issue request."""
    return IssueRequest(
        hardware_id=body.hardware_id,
        csr=None if body.csr is None else csr_octets(body.csr),
        further_csrs=tuple(csr_octets(text) for text in body.further_csrs),
        attested=attested(body.attested),
        envelope=body.envelope,
        key=body.idempotency_key,
    )


def prove_request(body: models.Prove) -> ProveRequest:
    """Read a proof."""
    return ProveRequest(
        attempt=body.attempt,
        certificate_sha256=body.certificate_sha256,
        signature=base64.b64decode(body.signature),
        further=tuple((one.certificate_sha256, base64.b64decode(one.signature)) for one in body.further),
        element=None if body.element is None else responses_of(body.element),
        key=body.idempotency_key,
    )


def responses_of(body: models.ElementResponses) -> Responses:
    """Read what a secure element answered."""
    return Responses(step=body.step, responses=tuple(bytes.fromhex(text) for text in body.responses))


def inject_request(body: models.Dialogue) -> InjectRequest:
    """Read a step of a dialogue."""
    return InjectRequest(attempt=body.attempt, element=responses_of(body.element))


def commands_of(commands: Commands) -> models.ElementCommands:
    """Render the commands for a secure element."""
    return models.ElementCommands.model_construct(
        step=commands.step,
        last=commands.last,
        commands=[
            models.ElementCommand.model_construct(
                command=guarded.command.hex(),
                status_words=[f"{word:04x}" for word in guarded.status_words],
                response_sha256=guarded.response_sha256,
            )
            for guarded in commands.batch
        ],
    )


def dialogue_step(commands: Commands) -> models.DialogueStep:
    """Render a step of a dialogue."""
    return models.DialogueStep.model_construct(attempt=commands.attempt, element=commands_of(commands))


def prove_result(released: Released, consistency: Sequence[models.Consistency] = ()) -> models.ProveResult:
    """Render a release, with what shows that the log only grew up to its token's checkpoint."""
    return models.ProveResult.model_construct(
        device=released.device,
        attempt=released.attempt,
        state="released",
        token=released.token,
        consistency=list(consistency),
    )
