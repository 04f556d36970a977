"""What a person's role does not let them do alone, whatever the command (SPEC K1)."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.clients import Role
from birthmark.pki.profiles import Catalogue
from birthmark.services.responders import Responders
from tests.support.realm import ORGANIZATION, Line


def test_a_line_lead_makes_no_responder_and_no_server_and_an_officer_leaves_an_entry(
    small_line: Line,
) -> None:
    """Who answers for an authority undoes a recall; who has a server's certificate is the service."""
    line = small_line
    lena = line.enrol(Role.LINE_LEAD, "lena")
    responders = Responders(line.keys, line.clock, SystemEntropy(), Catalogue.read(), ORGANIZATION, "TEST")
    spki = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(errors.NotPermitted, match="may not enrol-service: a line-lead does not have it"):
        line.service.carry(responders.enrol(lena.caller, "ocsp", "issuing-1", spki))
    for role in (Role.RESPONDER, Role.SERVER):
        with pytest.raises(errors.NotPermitted, match="may not enrol-service: a line-lead does not have it"):
            line.enrol(role, "other", by=lena)
    assert [entry["kind"] for entry in line.entries()[-3:]] == ["refused"] * 3
    line.service.carry(responders.enrol(line.operator.caller, "ocsp", "issuing-1", spki))
    last = line.entries()[-1]
    assert (last["kind"], last["actor"], last["client"]) == (
        "client-enrolled",
        line.operator.caller.client.id,
        "responder:ocsp",
    )
