"""What the gateway shows and believes changes while it runs, and never to something half done (SPEC H3)."""

import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from birthmark import app, errors
from birthmark.edge.application import Application
from birthmark.edge.http.contexts import everybody
from birthmark.edge.http.gateway_view import GatewayView
from birthmark.edge.pins import other_realms, pin_of
from birthmark.floor.authorities import Authority, AuthorityKind
from birthmark.floor.fleet import FleetAuthority, FleetPolicy, FleetStatus
from birthmark.ports import Act, Decision, Facts
from birthmark.services.acts import outcomes, refuse
from birthmark.settings import load
from tests.edge.cli.command import done
from tests.support.foreign import ForeignPKI
from tests.support.gateways import GatewayRealm, gateway_realm

FILES = {
    "certificate_file": "gateway.crt",
    "key_file": "secrets/gateway.key",
    "key_passphrase_file": "secrets/gateway.passphrase",
    "next_certificate_file": "gateway-next.crt",
    "next_key_file": "secrets/gateway-next.key",
}


@pytest.fixture
def made(tmp_path: Path) -> GatewayRealm:
    realm = gateway_realm(tmp_path / "realm", None, **FILES)
    command(realm, "gateway", "prepare", "--dns", "localhost")
    return realm


@pytest.fixture
def application(made: GatewayRealm) -> Iterator[Application]:
    built = app.build(load(made.realm.settings))
    yield built
    built.close()


def command(made: GatewayRealm, *words: object) -> None:
    done(*words, "--settings", made.realm.settings, "--as", made.realm.operator)


def view_of(application: Application) -> GatewayView:
    plane, record = application.settings.gateway_plane, (application.store, application.log)
    return GatewayView(plane, record, app.read_secret, lambda _cause, _refusal, _peer: None, everybody)


def test_while_nothing_changes_the_context_stays(application: Application) -> None:
    view = view_of(application)
    before = view.context()
    view.look()
    assert view.context() is before


def test_the_next_certificate_is_announced_when_it_is_there_and_shown_when_it_is_rotated_to(
    made: GatewayRealm, application: Application
) -> None:
    view = view_of(application)
    first = view.pins
    assert first.next is None
    command(made, "gateway", "prepare")
    view.look()
    assert (view.pins.now, view.pins.next) == (first.now, pin_of(made.realm.path / "gateway-next.crt"))
    announced, before = view.pins.next, view.context()
    done("gateway", "rotate", "--settings", made.realm.settings)
    view.look()
    assert (view.pins.now, view.pins.next) == (announced, None)
    assert view.context() is not before


def test_half_of_a_pair_changes_nothing_and_the_whole_is_taken_up(
    made: GatewayRealm, application: Application
) -> None:
    view, folder = view_of(application), made.realm.path
    before, pins = view.context(), view.pins
    command(made, "gateway", "prepare")
    (folder / "gateway.crt").unlink()
    shutil.copy(folder / "gateway-next.crt", folder / "gateway.crt")
    for _ in range(2):
        with pytest.raises(errors.MalformedRequest, match="no matching certificate"):
            view.look()
        assert (view.context(), view.pins) == (before, pins)
    (folder / "secrets/gateway.key").unlink()
    shutil.copy(folder / "secrets/gateway-next.key", folder / "secrets/gateway.key")
    view.look()
    assert view.pins.now == pin_of(folder / "gateway-next.crt")


def test_a_fleet_is_believed_from_its_registration_on(
    made: GatewayRealm, application: Application, tmp_path: Path
) -> None:
    root = ForeignPKI(folder=tmp_path / "foreign").root()
    view = view_of(application)
    command(made, "fleet", "challenge", "fjord", "--certificate", root.certificate)
    before = view.context()
    view.look()
    assert view.context() is before, "a challenge is no registration"


def test_of_two_anchors_with_one_name_the_first_is_believed_and_ours_always(
    made: GatewayRealm, application: Application, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pki = ForeignPKI(folder=tmp_path / "foreign")
    ours = next(one for one in application.store.scan(Authority) if one.kind is AuthorityKind.ROOT)
    roots = {name: pki.root(name) for name in ("fjord", "twin")} | {
        "lake": pki.root("lake", subject="/CN=lake")
    }
    thief, at = pki.root("thief", subject=_slashed(ours.der)), application.clock.now()

    def decide(facts: Facts, _at: datetime) -> Decision[None]:
        for number, (name, root) in enumerate(roots.items()):
            facts.put(_registered(name, root.der, at + timedelta(seconds=number)))
        # As when an authority of ours came to have the name of one that was registered before.
        facts.put(_registered("thief", thief.der, at))
        return Decision(None, [("test", {})])

    act = Act(actor="realm:test", decide=decide, refuse=refuse(None, "test", {}), reads={})
    outcomes(application.store.submit([act]).result())
    view = view_of(application)
    believed = set(view.context().get_ca_certs(binary_form=True))
    assert believed == {ours.der, roots["fjord"].der, roots["lake"].der}
    assert [one.authorities for one in caplog.records if hasattr(one, "authorities")] == [["thief", "twin"]]


def _registered(name: str, der: bytes, at: datetime) -> FleetAuthority:
    return FleetAuthority(
        id=name,
        der=der,
        policy=FleetPolicy().encode(),
        status=FleetStatus.ACTIVE,
        nonce="00",
        asked_at=at,
        verification=b"shown",
    )


def _slashed(der: bytes) -> str:
    subject = x509.load_der_x509_certificate(der).subject
    return "".join(f"/{one.rfc4514_attribute_name}={one.value!s}" for one in subject)


def test_a_root_of_another_realm_must_be_one_certificate(made: GatewayRealm, tmp_path: Path) -> None:
    plane = load(made.realm.settings).gateway_plane
    empty = tmp_path / "empty.pem"
    with pytest.raises(errors.NotFound, match="cannot read"):
        other_realms(plane.model_copy(update={"other_realms": (empty,)}))
    empty.write_text("nothing")
    with pytest.raises(errors.MalformedRequest, match="no block CERTIFICATE"):
        other_realms(plane.model_copy(update={"other_realms": (empty,)}))
