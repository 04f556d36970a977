"""An authority whose licence reaches too far is not made, whoever attends (SPEC A2)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from birthmark import errors
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.floor.authorities import AuthorityStatus
from birthmark.ports import KeyStore
from birthmark.services.ceremony_file import parse
from birthmark.services.ceremony_steps import Known, Progress
from tests.services.ceremonies import (
    ANNA,
    more,
    performed,
    unique,
)
from tests.support.ceremonies import carried_out
from tests.support.ceremony_files import realm_text
from tests.support.realm import PASSPHRASE, Hands, Line

_PLANT = """\
  - generate-key: plant
    store: service
    purpose: intermediate-ca
    kind: ec-p256
  - certificate: plant
    kind: intermediate
    profile: intermediate
    key: plant
    issuer: root
    subject: {organization: Acme Motors, authority: Plant, permitted-dns-names: plant.example}
    licence:
      owner: plant manager
      scope: product=VAN|CAR;site=graz
      profiles: [vehicle, idevid]
      quota: 100
      ends: 2028-01-01
      constraints:
        - {rule: country, variable: country, equals: AT}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """A root, and below it an intermediate authority with a narrow licence."""

    keys: KeyStore
    known: Known
    clock: Hands


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    keys = SoftwareKeyStore.open(tmp_path_factory.mktemp("plant") / "keys", PASSPHRASE)
    text = realm_text([ANNA])
    root, _, _ = text.partition("  - generate-key: issuing-1")
    root = root.replace('organization: "Acme Motors"', 'organization: "Acme Motors"\n      path-len: "2"')
    progress = carried_out(parse((root + _PLANT).encode()), [ANNA], {"service": keys, "root": keys}, Hands())
    known = Known(
        authorities=progress.authorities, stores={"plant": "service", "root": "root", "log": "service"}
    )
    yield Plant(keys=keys, known=known, clock=Hands())
    keys.close()


_CHILD = """\
  - generate-key: {label}
    store: service
    purpose: {purpose}
    kind: ec-p256
  - certificate: vans
    kind: {kind}
    profile: {profile}
    key: {label}
    issuer: plant
    subject: {subject}
    licence:
      owner: line 4
      scope: {scope}
      profiles: {profiles}
      quota: {quota}
      ends: {ends}
"""
_WITHIN: dict[str, str] = {
    "kind": "issuing",
    "purpose": "issuing-ca",
    "profile": "issuing",
    "subject": "{organization: Acme Motors, authority: Vans}",
    "scope": "product=VAN;site=graz",
    "profiles": "[vehicle]",
    "quota": "100",
    "ends": "2027-06-01",
}


def child(plant: Plant, **changes: str) -> Progress:
    top = realm_text([ANNA], ceremony=f"acme-{next(unique)}").partition("steps:\n")[0] + "steps:\n"
    text = top + _CHILD.format(**(_WITHIN | changes), label=f"vans-{next(unique)}")
    if changes.get("quota") == "":
        text = text.replace("      quota: \n", "")
    stores = {"service": plant.keys, "root": plant.keys}
    return carried_out(parse(text.encode()), [ANNA], stores, plant.clock, known=plant.known)


def test_a_child_within_its_parents_licence_is_made_and_keeps_its_constraints(plant: Plant) -> None:
    made = child(plant).authorities["vans"]
    assert made.scope == "product=VAN;site=graz"
    assert made.constraints == '[{"equals":"AT","rule":"country","variable":"country"}]'


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scope": "product=VAN"}, "may not reach further than plant.*site is \\*"),
        ({"scope": "'*'"}, "may not reach further than plant.*product is \\*"),
        ({"scope": "product=VAN|TRUCK;site=graz"}, "may not reach further than plant"),
        ({"quota": "101"}, "may not issue more than plant may: 100"),
        ({"quota": ""}, "may not issue more than plant may: 100"),
        ({"ends": "2028-01-02"}, "may not issue after plant ends"),
        ({"profiles": "['*']"}, "plant allows idevid vehicle"),
        ({"profiles": "[vehicle, matter-dac]"}, "plant allows idevid vehicle"),
        (
            {
                "kind": "intermediate",
                "purpose": "intermediate-ca",
                "profile": "intermediate",
                "subject": "{organization: A, authority: V, path-len: '1'}",
            },
            "pathLen is 1",
        ),
        (
            {
                "kind": "intermediate",
                "purpose": "intermediate-ca",
                "profile": "intermediate",
                "subject": "{organization: A, authority: V, path-len: '0', permitted-dns-names: ex}",
            },
            "permits more than the authority above",
        ),
        ({"subject": "{organization: A, authority: V, country: DE}"}, "country"),
        ({"subject": "{organization: A, authority: V, realm: other}"}, "realm is the realm's"),
        ({"subject": "{organization: A, authority: V, station: x}"}, "does not use station"),
        ({"profile": "vehicle", "subject": "{}"}, "not for authorities"),
        ({"ends": "2025-01-01"}, "would have ended already"),
    ],
)  # fmt: skip
def test_an_authority_that_breaks_its_parents_licence_cannot_be_made(
    plant: Plant, changes: dict[str, str], complaint: str
) -> None:
    with pytest.raises(errors.Refusal, match=complaint):
        child(plant, **changes)


@pytest.mark.parametrize(
    "status", [AuthorityStatus.SUSPENDED, AuthorityStatus.RETIRED, AuthorityStatus.REVOKED]
)
def test_an_authority_that_is_not_active_certifies_nobody(plant: Plant, status: AuthorityStatus) -> None:
    idle = replace(plant.known.authorities["plant"], status=status)
    known = replace(plant.known, authorities={**plant.known.authorities, "plant": idle})
    with pytest.raises(errors.IllegalTransition, match=f"plant is {status}"):
        child(replace(plant, known=known))


def test_a_parent_that_changed_meanwhile_is_seen_in_the_commit(bare_line: Line) -> None:
    """SPEC A2: what held when the certificate was signed must hold when the authority is established."""
    _, progress = more(bare_line)
    change = bare_line.service.authorise.change
    bare_line.service.carry(change(bare_line.operator.caller, "root", AuthorityStatus.SUSPENDED, "audit"))
    with pytest.raises(errors.IllegalTransition, match="authority root is suspended"):
        performed(bare_line, progress)
