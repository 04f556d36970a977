"""Answers that carry private keys: each key is written once, into octets that vanish when they are sent.

A model holds a mark where a key belongs, and is rendered as any other.  The octets of the answer are put
together here, in place: the key's PEM (RFC 7468) never is a text, and what the base64 encoder returns is
overwritten.  What the TLS library makes of them is encrypted where it copies them to.
"""

import binascii
from collections.abc import Sequence

from fastapi import Response
from pydantic import BaseModel

from birthmark.secret import SecretBytes, Vanishing, wipe

__all__ = ["mark", "with_keys"]

_BEGIN, _END = (b"-----%s PRIVATE KEY-----\\n" % word for word in (b"BEGIN", b"END"))
_LINE = 64


def mark(number: int) -> str:
    """Return what stands in a model in place of the key with this number."""
    return f"{{key {number}}}"


def with_keys(body: BaseModel, keys: Sequence[SecretBytes], media_type: str) -> Response:
    """Return the answer with the keys in place of their marks, in PEM, as members ``private_key``.

    Args:
        body: has the marks from 0 up, in their order.
        keys: PKCS#8 (DER).
        media_type: of the answer.
    """
    rest = body.model_dump_json().encode()
    pieces = []
    for number in range(len(keys)):
        # A quote that is not escaped stands in no text of JSON: only the member is found so.
        before, _, rest = rest.partition(b'"private_key":"%s"' % mark(number).encode())
        pieces.append(before + b'"private_key":"')
    if not keys:
        return Response(rest, media_type=media_type)
    answer = Vanishing(sum(map(len, pieces)) + len(rest) + sum(_size(key) + 1 for key in keys))
    place = memoryview(answer)
    at = 0
    for piece, key in zip(pieces, keys, strict=True):
        for octets in (piece, _BEGIN):
            at = _put(place, at, octets)
        at = _put_base64(place, at, key)
        at = _put(place, at, _END + b'"')
    _put(place, at, rest)
    return Response(place, media_type=media_type)


def _size(key: SecretBytes) -> int:
    """Return how many octets a key's PEM has in JSON, which spells a line end as two."""
    coded = -(-len(key) // 3) * 4
    return len(_BEGIN) + coded + 2 * -(-coded // _LINE) + len(_END)


def _put(place: memoryview, at: int, octets: bytes | memoryview) -> int:
    place[at : at + len(octets)] = octets
    return at + len(octets)


def _put_base64(place: memoryview, at: int, key: SecretBytes) -> int:
    coded = binascii.b2a_base64(key.view(), newline=False)
    lines = memoryview(coded)
    for start in range(0, len(coded), _LINE):
        at = _put(place, at, lines[start : start + _LINE])
        at = _put(place, at, b"\\n")
    wipe(coded)
    return at
