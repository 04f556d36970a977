"""pyhanko-certvalidator, asked for paths and their leaves' status; runs with .tools/peers/pyhanko.

Standard input has one question a line, in JSON; standard output one answer a line.
"""

import asyncio
import importlib
import json
import sys
from datetime import UTC, datetime
from typing import Any

# By name: our own type checker does not see this environment.
validator: Any = importlib.import_module("pyhanko_certvalidator")
policy: Any = importlib.import_module("pyhanko_certvalidator.policy_decl")
errors: Any = importlib.import_module("pyhanko_certvalidator.errors")
ocsp: Any = importlib.import_module("pyhanko_certvalidator.revinfo.validate_ocsp")
asn1: Any = importlib.import_module("asn1crypto.x509")


async def judge(question: dict[str, Any]) -> None:
    """Raise what it has against a path or its leaf's status."""
    leaf, root = _certificate(question["leaf"]), _certificate(question["root"])
    between = [_certificate(text) for text in question["between"]]
    evidence = [bytes.fromhex(text) for text in question["evidence"]]
    # The status of the leaf alone; what revokes an authority is a path of its own.
    rules = policy.RevocationCheckingRule
    checking = policy.RevocationCheckingPolicy(
        ee_certificate_rule=rules.CRL_REQUIRED if question["source"] == "crls" else rules.NO_CHECK,
        intermediate_ca_cert_rule=rules.NO_CHECK,
    )
    context = validator.ValidationContext(
        trust_roots=[root],
        moment=datetime.fromtimestamp(question["at"], UTC),
        allow_fetching=False,
        crls=evidence if question["source"] == "crls" else (),
        ocsps=evidence if question["source"] == "response" else (),
        revinfo_policy=policy.CertRevTrustPolicy(checking),
    )
    path = await validator.CertificateValidator(leaf, between, context).async_validate_path()
    if question["source"] == "response":
        # By itself it looks at responses only for certificates that name a responder (authorityInfoAccess).
        await ocsp.verify_ocsp_response(leaf, path, context)


def answer(question: dict[str, Any]) -> dict[str, str | None]:
    """Return what it says."""
    try:
        asyncio.run(judge(question))
    except errors.RevokedError as error:
        reason = error.reason.native if error.reason is not None else None
        return {"status": "revoked", "reason": reason, "said": str(error)}
    except (errors.InsufficientRevinfoError, errors.OCSPValidationError) as error:
        return _said("undetermined", error)
    except (errors.PathError, errors.ValidationError) as error:
        return _said("refused", error)
    return {"status": "good", "reason": None, "said": ""}


def _said(status: str, error: Exception) -> dict[str, str | None]:
    return {"status": status, "reason": None, "said": f"{type(error).__name__}: {error.args[0]}"}


def _certificate(text: str) -> Any:
    return asn1.Certificate.load(bytes.fromhex(text))


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
