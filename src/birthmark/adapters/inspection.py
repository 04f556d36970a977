"""``ports.Inspector`` over pkilint, which judges certificates by RFC 5280 and the rest of PKIX.

Its validators are called as its own commands ``lint_pkix_cert`` and ``lint_pkix_signer_signee_cert_chain``
put them together, without the one that verifies the signature.  Importing it takes about half a second and
fifteen megabytes, so that happens when the first certificate is inspected: in a process that opens runs,
never in one that serves a line.
"""

import importlib
import importlib.metadata
import warnings
from functools import cached_property
from typing import Any

from birthmark import errors
from birthmark.pki.articles import Finding, Severity

__all__ = ["PkilintInspector"]

_SHOWN = 300
"""Characters of a finding's detail that are kept."""


class PkilintInspector:
    """pkilint's PKIX validators."""

    @property
    def name(self) -> str:
        """Its name, as waivers spell it."""
        return "pkilint"

    @property
    def version(self) -> str:
        """Its version, for the record."""
        return importlib.metadata.version("pkilint")

    def inspect(self, certificate: bytes, issuer: bytes | None) -> tuple[Finding, ...]:
        """Return what pkilint finds at NOTICE or above, each once; see ``ports.Inspector``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of its libraries are no findings
            linter = self._linter
            try:
                results = linter.results(certificate, issuer)
            except ValueError as cause:
                raise errors.MalformedRequest(f"pkilint cannot read the certificate: {cause}") from cause
        found = (
            Finding(
                severity=Severity(str(description.finding.severity).lower()),
                code=description.finding.code,
                detail=(description.message or "")[:_SHOWN],
            )
            for result in results
            for description in result.finding_descriptions
            if description.finding.severity <= linter.least
        )
        return tuple(dict.fromkeys(found))

    @cached_property
    def _linter(self) -> "_Linter":
        return _Linter()


class _Linter:
    """The library, once it is loaded."""

    def __init__(self) -> None:
        load = importlib.import_module
        loader, pkix, validation = map(load, ("pkilint.loader", "pkilint.pkix", "pkilint.validation"))
        certificate, name, extension, algorithm, key = (
            load(f"pkilint.pkix.{part}") for part in ("certificate", "name", "extension", "algorithm", "key")
        )
        policies = load("pkilint.pkix.certificate.certificate_extension")
        aki = load("pyasn1_alt_modules.rfc5280").id_ce_authorityKeyIdentifier
        named = load("pkilint.document").get_document_by_name

        self.least = validation.ValidationFindingSeverity.NOTICE
        self._load = loader.RFC5280CertificateDocumentLoader().load_der_document
        self._certificate = certificate.create_pkix_certificate_validator_container(
            certificate.create_decoding_validators(
                name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS
            ),
            [
                certificate.create_issuer_validator_container([]),
                certificate.create_validity_validator_container(),
                certificate.create_subject_validator_container([]),
                certificate.create_extensions_validator_container([]),
                certificate.create_spki_validator_container([]),
            ],
        )
        self._decoding = validation.ValidatorContainer(
            validators=[
                pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
                pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
                pkix.create_signature_algorithm_identifier_decoder(
                    algorithm.SIGNATURE_ALGORITHM_IDENTIFIER_MAPPINGS,
                    path="certificate.tbsCertificate.signature",
                ),
                certificate.create_spki_decoder(
                    key.SUBJECT_PUBLIC_KEY_ALGORITHM_IDENTIFIER_MAPPINGS,
                    key.SUBJECT_KEY_PARAMETER_ALGORITHM_IDENTIFIER_MAPPINGS,
                ),
            ],
            path="certificate",
        )
        self._pair = validation.ValidatorContainer(
            validators=[
                name.IssuerSubjectNameBinaryEqualValidator(
                    path="certificate.tbsCertificate.subject",
                    subject_document_issuer_dn_path="subject:certificate.tbsCertificate.issuer",
                ),
                extension.IssuerSubjectKeyIdentifierBinaryEqualValidator(
                    subject_auth_key_id_retriever=(
                        lambda node: named(node, "subject").get_extension_by_oid(aki)
                    )
                ),
                policies.IssuerSubjectPolicyChainValidator(),
            ]
        )

    def results(self, certificate: bytes, issuer: bytes | None) -> list[Any]:
        """Return the results of all validators."""
        found: list[Any] = list(self._certificate.validate(self._load(certificate, "certificate").root))
        if issuer is None:
            return found
        documents: dict[str, Any] = {}
        for which, octets in (("issuer", issuer), ("subject", certificate)):
            documents[which] = self._load(octets, which, which, documents)
        # Decoding fills in what the pair's validators compare; what it finds in the issuer is the issuer's.
        for document in documents.values():
            self._decoding.validate(document.root)
        found += self._pair.validate(documents["issuer"].root)
        return found
