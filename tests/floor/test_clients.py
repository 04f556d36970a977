"""Who may do what (SPEC C2)."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from birthmark import errors
from birthmark.floor.clients import (
    CAPABILITIES,
    Capability,
    Client,
    ClientStatus,
    Credential,
    Role,
    check_name,
    require,
)

CLIENT = Client(
    id="station:ST01",
    role=Role.STATION,
    site="Graz",
    line="L1",
    hardware_id=None,
    run=None,
    status=ClientStatus.ACTIVE,
    last_seq=0,
)
CREDENTIAL = Credential(
    serial="01",
    client="station:ST01",
    authority="issuing-1",
    profile="station",
    der=b"",
    not_after=datetime(2026, 11, 23, tzinfo=UTC),
    status=ClientStatus.ACTIVE,
)


def test_the_table_of_capabilities_is_the_one_that_was_agreed() -> None:
    """A change here is a change of who is trusted with what: let somebody look at it twice."""
    shown = {str(role): " ".join(sorted(CAPABILITIES[role])) for role in Role}
    assert shown == {
        "station": "hold issue prove read renew-self",
        "bootstrap": "issue prove",
        "shared": "issue",
        "device": "enrol-self prove",
        "operator": "hold read renew-self",
        "line-lead": (
            "approve-enrolment close-run enrol-station hold meet-devices read record-shipment renew-self"
            " revoke-client rework scrap set-exposure"
        ),
        "officer": (
            "approve-authority approve-enrolment approve-fleet approve-recall approve-roles approve-run"
            " approve-shared change-authority change-fleet change-roles close-run enrol-service enrol-station"
            " hold keep-keys meet-devices open-run propose-recall read record-shipment renew-self"
            " revoke-client revoke-person rework scrap set-exposure share-credential"
        ),
        "auditor": "read renew-self",
        "custodian": "attend-ceremony",
        "proxy": "ask-device renew-self",
        "responder": "",
        "server": "",
    }


@pytest.mark.parametrize(("role", "capability"), list(itertools.product(Role, Capability)))
def test_a_role_may_do_what_the_table_says_and_nothing_else(role: Role, capability: Capability) -> None:
    client = replace(CLIENT, role=role)
    if capability in CAPABILITIES[role]:
        require(client, CREDENTIAL, capability)
        return
    article = "an" if role in (Role.OPERATOR, Role.OFFICER, Role.AUDITOR) else "a"
    with pytest.raises(errors.NotPermitted, match=f"may not {capability}: {article} {role} does not have it"):
        require(client, CREDENTIAL, capability)


def test_no_station_can_undo_a_hold() -> None:
    """SPEC C4: rework and scrap are a person's decision."""
    for role in (Role.STATION, Role.BOOTSTRAP, Role.SERVER):
        assert not CAPABILITIES[role] & {Capability.REWORK, Capability.SCRAP, Capability.OPEN_RUN}


@pytest.mark.parametrize("capability", Capability)
def test_a_revoked_client_or_credential_may_do_nothing(capability: Capability) -> None:
    """SPEC C1: before anything is said about roles, so that a revoked client learns nothing."""
    for client, credential in (
        (replace(CLIENT, status=ClientStatus.REVOKED), CREDENTIAL),
        (CLIENT, replace(CREDENTIAL, status=ClientStatus.REVOKED)),
    ):
        with pytest.raises(errors.Unauthenticated, match="station:ST01 was revoked"):
            require(client, credential, capability)


def test_the_name_of_a_client_is_what_follows_its_role() -> None:
    assert CLIENT.name == "ST01"
    assert replace(CLIENT, id="bootstrap:a:b").name == "a:b"


@pytest.mark.parametrize("name", ["ST01", "a", "x" * 64, "a.b_c-D", "_a", "a..", "-"])
def test_a_name_that_can_stand_anywhere_is_taken(name: str) -> None:
    assert check_name("station", name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "...", ".a", "x" * 65, "a b", "a/b", "ä", "a\n", "a\x00", "١", "<b>"]
)
def test_no_other_name_is(name: str) -> None:
    with pytest.raises(errors.MalformedRequest, match=r"a station's name is 1 to 64 of") as refused:
        check_name("station", name)
    assert "\n" not in str(refused.value)


def test_a_realm_has_a_shorter_name() -> None:
    """Its authorities are named after it, and a common name has 64 characters (RFC 5280 appendix A.1)."""
    assert check_name("realm", "x" * 40, longest=40)
    with pytest.raises(errors.MalformedRequest, match="1 to 40"):
        check_name("realm", "x" * 41, longest=40)
