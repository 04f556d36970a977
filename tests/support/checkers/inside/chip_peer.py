"""The Matter SDK's attestation functions, called in its shared library; runs with .tools/peers/chip.

The question names a function and its certificates (hex); the answer has the SDK's error code, 0 for none.
The functions are C++ and have no stable interface: the names are those of the one release that is locked.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

_CRYPTO = "_ZN4chip6Crypto"
_FORMAT = f"{_CRYPTO}34VerifyAttestationCertificateFormatERKNS_4SpanIKhEENS0_19AttestationCertTypeE"
_CHAIN = f"{_CRYPTO}24ValidateCertificateChainEPKhmS2_mS2_mRNS0_32CertificateChainValidationResultE"
_NUMBERS = f"{_CRYPTO}25ExtractVIDPIDFromX509CertERKNS_4SpanIKhEERNS0_21AttestationCertVidPidE"


class Span(ctypes.Structure):
    """chip::Span: where octets are and how many."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class ChipError(ctypes.Structure):
    """chip::ChipError, returned by value."""

    _fields_ = (("code", ctypes.c_uint32), ("file", ctypes.c_char_p), ("line", ctypes.c_uint32))


class Numbers(ctypes.Structure):
    """AttestationCertVidPid: two Optional<uint16_t>."""

    _fields_ = (
        ("has_vendor", ctypes.c_bool),
        ("vendor", ctypes.c_uint16),
        ("has_product", ctypes.c_bool),
        ("product", ctypes.c_uint16),
        ("room", ctypes.c_uint8 * 24),
    )


def main() -> None:
    """Answer one question."""
    question: dict[str, Any] = json.load(sys.stdin)
    (library,) = (Path(sys.prefix) / "lib").glob("python3*/site-packages/chip/_ChipDeviceCtrl.so")
    sdk = ctypes.CDLL(str(library))
    keep = [
        ctypes.create_string_buffer(bytes.fromhex(text), len(text) // 2) for text in question["certificates"]
    ]
    spans = [Span(ctypes.addressof(octets), len(octets)) for octets in keep]
    answer: dict[str, int | None]
    match question["function"]:
        case "format":
            check = sdk[_FORMAT]
            check.restype = ChipError
            answer = {"code": check(ctypes.byref(spans[0]), ctypes.c_uint8(question["type"])).code}
        case "chain":
            check = sdk[_CHAIN]
            check.restype = ChipError
            result = ctypes.c_int(-1)
            arguments = [
                part for span in spans for part in (ctypes.c_void_p(span.data), ctypes.c_size_t(span.size))
            ]
            answer = {"code": check(*arguments, ctypes.byref(result)).code, "result": result.value}
        case "numbers":
            check = sdk[_NUMBERS]
            check.restype = ChipError
            numbers = Numbers()
            code = check(ctypes.byref(spans[0]), ctypes.byref(numbers)).code
            answer = {
                "code": code,
                "vendor": numbers.vendor if numbers.has_vendor else None,
                "product": numbers.product if numbers.has_product else None,
            }
        case other:
            raise SystemExit(f"no function {other}")
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
