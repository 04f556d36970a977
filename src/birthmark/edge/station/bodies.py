"""Requests to the station plane as values, their addresses and bodies; answers to gang requests (JSON)."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from birthmark import errors
from birthmark.edge.station.answers import take
from birthmark.edge.station.attesting import attested_body
from birthmark.edge.station.injecting import Carried
from birthmark.edge.station.transport import refusal
from birthmark.ledger.checkpoint import Checkpoint

__all__ = [
    "InjectItem",
    "IssueItem",
    "ProofItem",
    "inject_body",
    "issue_body",
    "proof_body",
    "read_results",
    "segment",
    "since",
]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueItem:
    """An issue request for one device."""

    hardware_id: str
    key: str
    """Idempotency key."""
    csr: str | None = field(default=None, repr=False)
    """PKCS#10 (PEM), or None to have the key delivered."""
    further_csrs: tuple[str, ...] = field(default=(), repr=False)
    """The same for the run's further profiles, in their order; none if keys are delivered."""
    attested: str | None = field(default=None, repr=False)
    """What the device's TPM answered (JSON, from ``attesting.written``), if the run wants to know."""
    envelope: bool = False
    """True to have delivered keys in envelopes to the station's own key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofItem:
    """A proof for one device."""

    attempt: str
    certificate_sha256: str
    """Hex."""
    signature: bytes
    key: str
    """Idempotency key."""
    further: tuple[tuple[str, bytes], ...] = ()
    """Fingerprint (hex) and signature for each further certificate, in the order of the run's profiles."""
    element: Carried | None = None
    """What the device's secure element answered last, if the run puts a key set into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectItem:
    """A request for the next batch of one device."""

    attempt: str
    carried: Carried


def read_results(
    body: Mapping[str, Any], count: int, read: Callable[[Mapping[str, Any]], _T]
) -> list[_T | errors.Refusal]:
    """Read the answer to a gang request: a result or a refusal for each device, in order.

    Raises:
        IntegrityFailure: it is something else.
    """
    items = take(body, "results", list)
    if len(items) != count:
        raise errors.IntegrityFailure(f"asked for {count} devices, the service answered for {len(items)}")
    results: list[_T | errors.Refusal] = []
    for item in items:
        if not isinstance(item, dict):
            raise errors.IntegrityFailure("a result of the service is no json object")
        results.append(refusal(item) if "code" in item else read(item))
    return results


def segment(text: str) -> str:
    """Return a name as a segment of a path.

    Raises:
        MalformedRequest: it names nothing.
    """
    if not text or text in {".", ".."}:
        raise errors.MalformedRequest(f"{text!r} names nothing")
    return quote(text, safe=":")


def since(*known: Checkpoint | None) -> str:
    """Return the query that asks for proofs that the log grew from these checkpoints."""
    sizes = "&".join(f"since={one.size}" for one in known if one is not None and one.size)
    return sizes and f"?{sizes}"


def issue_body(item: IssueItem) -> dict[str, Any]:
    """Return what asks for an identity."""
    body: dict[str, Any] = {"hardware_id": item.hardware_id, "idempotency_key": item.key}
    if item.csr is not None:
        body["csr"] = item.csr
    if item.further_csrs:
        body["further_csrs"] = list(item.further_csrs)
    if item.attested is not None:
        body["attested"] = attested_body(item.attested)
    if item.envelope:
        body["envelope"] = True
    return body


def proof_body(item: ProofItem) -> dict[str, Any]:
    """Return what proves that a device holds what it was given."""
    body: dict[str, Any] = {
        "attempt": item.attempt,
        **_shown(item.certificate_sha256, item.signature),
        "idempotency_key": item.key,
    }
    if item.further:
        body["further"] = [_shown(digest, signature) for digest, signature in item.further]
    if item.element is not None:
        body["element"] = _carried(item.element)
    return body


def inject_body(item: InjectItem) -> dict[str, Any]:
    """Return what asks for the next batch for a secure element."""
    return {"attempt": item.attempt, "element": _carried(item.carried)}


def _carried(carried: Carried) -> dict[str, Any]:
    return {"step": carried.step, "responses": [response.hex() for response in carried.responses]}


def _shown(certificate_sha256: str, signature: bytes) -> dict[str, str]:
    return {"certificate_sha256": certificate_sha256, "signature": base64.b64encode(signature).decode()}
