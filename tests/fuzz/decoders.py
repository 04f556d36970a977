"""Which functions read octets of others, by what they are called and by what they say they raise.

A decoder is a public function, or a public method of a public class, that takes octets, a text, a file or a
JSON object, and

- is called so (``decode``, ``parse``, ``read``, ``load``, ``vet``, ``open`` …, ``from_der`` …), or
- says in its docstring that it raises ``MalformedRequest``.

``test_decoders`` holds the list against what the targets reach: a new decoder without a target fails it.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import birthmark

__all__ = ["ELSEWHERE", "SOURCE", "decoders"]

SOURCE = Path(birthmark.__file__).parent
_CALLED = re.compile(
    r"(decode|parse|read|load|vet|open|unwrap|recognise)(_.*)?|from_(der|pem|bytes|body|text)"
)
_TAKES = re.compile(
    r"\b(bytes|str|Buffer|Path|PathLike|Mapping|dict|object|Any|SecretBytes|ResponseAPDU|BinaryIO)\b"
)
_RAISES = "MalformedRequest:"


def decoders() -> Iterator[str]:
    """Yield them all, ``pki/csr.py:vet``."""
    for file in sorted(SOURCE.rglob("*.py")):
        module = str(file.relative_to(SOURCE))
        for name, function in _functions(ast.parse(file.read_text(encoding="utf-8")), ""):
            if _is_decoder(function):
                yield f"{module}:{name}"


def _functions(inside: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(inside):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node


def _is_decoder(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    given = function.args
    annotations = [
        ast.unparse(one.annotation)
        for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)
        if one.annotation is not None
    ]
    if not any(_TAKES.search(annotation) for annotation in annotations):
        return False
    return _CALLED.fullmatch(function.name) is not None or _RAISES in (ast.get_docstring(function) or "")


# --- what has no target of its own, and why
#
# Whoever adds a decoder adds a target that reaches it, or a line here.

_OURS = """What it takes was made or judged by us: it spells, and refuses what cannot be spelled."""
_PORT = """A declaration, or something that hands over to what is named below it; nothing is read here."""
_PLACE = """It opens a place (a database, a token, a directory, a card) whose name an operator wrote."""
_ROWS = """What it takes is from the record, whose octets a decoder with a target has read before."""
_CHIP = """It speaks to a chip or a store: what comes from there is read by a decoder with a target."""
_USE = """A use case: what it is given was read by decoders with targets; tests.services has its refusals."""
_SECRET = (
    """It opens what is sealed under a key or a passphrase: a changed octet fails the seal (its own tests)."""
)

ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    _OURS: (
        "element/diversification.py:an10922_messages",
        "floor/ceremonies.py:answer_message",
        "floor/locations.py:certificate_path",
        "floor/locations.py:responder_folder",
        "floor/locations.py:responder_path",
        "ledger/bundle.py:write_bundle",
        "ledger/checkpoint.py:vkey",
        "ledger/entry.py:encode",
        "pki/articles.py:article",
        "pki/keypackage.py:package_signer",
        "pki/nameconstraints.py:name_constraints_x509",
        "edge/station/credentials.py:write_station_directory",
        "edge/station/elements/requests.py:certification_request",
        "edge/cli/hierarchy.py:only_authority",
        "edge/station/ownkeys.py:public_key_info",
        "edge/station/ownkeys.py:request_for",
        "edge/station/bodies.py:segment",
        "edge/cli/servers.py:addresses",
        "edge/cli/servers.py:dns_names",
    ),
    _PORT: (
        "adapters/failover.py:FailoverKeyStore.unwrap",
        "adapters/observed.py:ObservedKeyStore.unwrap",
        "adapters/pkcs11.py:PKCS11KeyStore.unwrap",
        "adapters/softkeys.py:SoftwareKeyStore.unwrap",
        "adapters/tokenkeyring.py:TokenKeyring.unwrap",
        "edge/application.py:Factory.read_copy",
        "edge/application.py:Factory.read_secret",
        "edge/station/credentials.py:Credentials.open_envelope",
        "services/backup.py:DatabaseCopies.put_back",
        "ports.py:Inspector.inspect",
        "ports.py:KeyStore.accept_secret",
        "ports.py:KeyStore.unwrap",
        "ports.py:Publication.read",
        "edge/cli/ceremony_options.py:papers_of",
        "edge/cli/key_folders.py:open_key_folder",
        "edge/cli/exposures.py:open_exposure",
        "edge/cli/runs.py:open_run",
    ),
    _PLACE: (
        "adapters/pkcs11.py:PKCS11KeyStore.open",
        "adapters/publication.py:PublicationDirectory.read",
        "adapters/softkeys.py:SoftwareKeyStore.open",
        "adapters/sql/copies.py:copies_of",
        "adapters/sql/copies.py:read_copy",
        "adapters/sql/engines.py:open_database",
        "app.py:read_copy",
        "adapters/sql/migrate.py:migrate",
        "adapters/sql/postgresql.py:connection_parameters",
        "adapters/tokensession.py:require_text",
        "edge/cli/histories.py:opened_bundle",
        "edge/cli/profile_files.py:read_whole",
        "edge/cli/shared_files.py:read_waiting_key",
        "edge/http/contexts.py:server_context",
        "edge/http/identity.py:ServerIdentity.open",
        "edge/pins.py:pin_of",
        "edge/station/elements/__init__.py:allow",
        "edge/station/elements/__init__.py:opened",
        "edge/station/elements/atecc.py:element",
        "edge/station/elements/carded.py:carded",
        "edge/station/elements/file.py:element",
        "edge/station/elements/tpm.py:element",
        "edge/station/elements/virtual.py:Drawer.element",
        "element/catalogue.py:ElementCatalogue.load",
        "element/catalogue.py:ElementCatalogue.read",
        "element/catalogue.py:load",
        "pki/profiles.py:Catalogue.read",
        "tomltable.py:files_of",
    ),
    _ROWS: (
        "services/ceremony_judgement.py:require_listed",
        "services/element_testimony.py:ElementsSaid.take_issued",
        "services/element_testimony.py:ElementsSaid.take_opened",
        "services/element_testimony.py:ElementsSaid.take_released",
        "services/key_testimony.py:KeysSaid.take_ceremony",
        "services/foreign_status.py:Lists.read",
        "services/status.py:delegate",
        "services/two_people.py:verify_approval",
    ),
    _CHIP: (
        "adapters/foreign.py:fetch",
        "adapters/sql/copies.py:dumped_schema",
        "adapters/tokenattributes.py:read_attributes",
        "adapters/tokenkeys.py:accept_secret",
        "adapters/tokenkeys.py:unwrap_private",
        "edge/station/client.py:Station.provision",
        "edge/station/elements/atecc.py:ATECCElement.certification_request",
        "edge/station/elements/pcsc.py:PCSCChannel.transmit",
        "edge/station/elements/pkcs11.py:PKCS11Element.certification_request",
        "edge/station/elements/pkcs11.py:PKCS11Element.install",
        "edge/station/elements/tcp.py:TCPChannel.transmit",
        "edge/station/elements/tpm.py:TPMElement.slot",
        "edge/station/elements/tpm.py:TPMSlot.certification_request",
        "edge/station/elements/virtual.py:derived_keys",
        "edge/station/elements/virtual.py:initial_keys",
        "edge/station/enclave.py:Enclave.slot",
        "edge/station/slots.py:FolderSlot.certification_request",
    ),
    _USE: (
        "services/backup.py:verify",
        "services/ceremony_handover.py:Stays.message",
        "services/custody.py:KeyCustody.restore",
        "services/exposures.py:clear_exposure",
        "services/exposures.py:close_now",
        "services/exposures.py:set_exposure",
        "services/fleet.py:Fleet.challenge",
        "services/fleet.py:put_registered",
        "services/fleet.py:put_status",
        "services/foreign_lists.py:take_crl",
        "services/invitations.py:Invitations.join",
        "services/opening.py:OpenRuns.open",
        "services/proposals.py:Proposals.propose",
        "services/publish.py:Publish.take_in",
        "services/renewals.py:Renewals.renew",
        "services/shipments.py:record_shipment",
    ),
    _SECRET: ("adapters/softsecrets.py:open_secret",),
}
