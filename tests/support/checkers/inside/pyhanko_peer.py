"""pyhanko-certvalidator, asked for a path and its leaf's status; runs with .tools/peers/pyhanko."""

import asyncio
import importlib
import json
import sys
from datetime import UTC, datetime
from typing import Any


def main() -> None:
    """Answer one question."""
    question: dict[str, Any] = json.load(sys.stdin)
    # By name: our own type checker does not see this environment.
    validator, policy, errors, ocsp, asn1 = (
        importlib.import_module(name)
        for name in (
            "pyhanko_certvalidator",
            "pyhanko_certvalidator.policy_decl",
            "pyhanko_certvalidator.errors",
            "pyhanko_certvalidator.revinfo.validate_ocsp",
            "asn1crypto.x509",
        )
    )

    def certificate(text: str) -> Any:
        return asn1.Certificate.load(bytes.fromhex(text))

    # The status of the leaf alone; what revokes an authority is a path of its own.
    rules = policy.RevocationCheckingRule
    checking = policy.RevocationCheckingPolicy(
        ee_certificate_rule=rules.CRL_REQUIRED if question["source"] == "crls" else rules.NO_CHECK,
        intermediate_ca_cert_rule=rules.NO_CHECK,
    )
    evidence = [bytes.fromhex(text) for text in question["evidence"]]
    context = validator.ValidationContext(
        trust_roots=[certificate(question["root"])],
        moment=datetime.fromtimestamp(question["at"], UTC),
        allow_fetching=False,
        crls=evidence if question["source"] == "crls" else (),
        ocsps=evidence if question["source"] == "response" else (),
        revinfo_policy=policy.CertRevTrustPolicy(checking),
    )
    leaf = certificate(question["leaf"])
    checked = validator.CertificateValidator(
        leaf, [certificate(text) for text in question["between"]], context
    )

    async def judge() -> None:
        path = await checked.async_validate_path()
        if question["source"] == "response":
            # By itself it looks at responses only for certificates that name a responder
            # (authorityInfoAccess).
            await ocsp.verify_ocsp_response(leaf, path, context)

    answer: dict[str, str | None] = {"status": "good", "reason": None, "said": ""}
    try:
        asyncio.run(judge())
    except errors.RevokedError as error:
        reason = error.reason.native if error.reason is not None else None
        answer = {"status": "revoked", "reason": reason, "said": str(error)}
    except (errors.InsufficientRevinfoError, errors.OCSPValidationError) as error:
        answer |= {"status": "undetermined", "said": f"{type(error).__name__}: {error.args[0]}"}
    except (errors.PathError, errors.ValidationError) as error:
        answer |= {"status": "refused", "said": f"{type(error).__name__}: {error.args[0]}"}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
