"""Whom the gateway turns away: each is tried by curl or openssl, and looked for in the log afterwards."""

import json
import shutil
from pathlib import Path

from demo.field_devices import OPERATIONAL, Answer, Field, Vehicle
from demo.field_fleet import NAME, Fleet
from demo.field_line import SECOND
from demo.realm import OPERATOR, WentWrong
from demo.trials import Trial, kind

ELSEWHERE = "127.0.0.9"
_FORBIDDEN = 403


class FieldTrials:
    """The trials, over one workshop whose vehicles have reported."""

    def __init__(self, field: Field, directory: Path) -> None:
        """Prepare; ``directory`` is where what clones and strangers show is kept."""
        self._field = field
        self._run = field.workshop.birthmark
        self._directory = directory

    def unreleased(self, vehicle: Vehicle) -> Trial:
        """A vehicle whose certificate was issued, and that never proved that it has the key."""
        answer = self._field.contact(vehicle)
        return Trial(
            tried="an unreleased vehicle: its certificate is issued, the proof was never given",
            answer=answer.words,
            as_expected=_turned_away(answer, "device-not-released"),
            leaves={"refused": kind("refused", vehicle.id, rule="device-not-released")},
        )

    def replaced(self, vin: str) -> Trial:
        """A vehicle renews (EST simplereenroll); the old certificate ends when the new one is used."""
        field, place = self._field, self._field.workshop.vehicles / vin
        old = field.booted(vin)
        new = Vehicle(vin=vin, certificate=place / "renewed.pem", key=place / "renewed.key")
        request = place / "renewed.csr"
        field.openssl(
            "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", new.key, show=True
        )
        pem = field.openssl(
            *("x509", "-x509toreq", "-in", old.certificate, "-signkey", new.key, "-copy_extensions", "copy")
        )
        field.openssl("req", "-outform", "DER", "-out", request, told=pem)
        above = field.authorities(OPERATIONAL)
        new.certificate.write_bytes(field.est(f"{OPERATIONAL}/simplereenroll", request, who=old) + above)
        before, used, after = field.contact(old), field.contact(new), field.contact(old)
        return Trial(
            tried="a renewed certificate: shown before the new one is used, and after that",
            answer=f"old: {before.status}; new: {used.status}; old: {after.words}",
            as_expected=(before.status, used.status) == (200, 200)
            and _turned_away(after, "certificate-revoked"),
            leaves={
                "proved": kind("local-proved", new.id),
                "refused": kind("refused", new.id, rule="certificate-revoked"),
            },
        )

    def clone(self, vin: str) -> Trial:
        """Key and certificate of a vehicle's computer are copied; the identity in its enclave is not."""
        field, stolen = self._field, self._directory / f"clone-{vin}.pem"
        true = field.booted(vin)
        shutil.copy(true.certificate, stolen)
        clone = Vehicle(vin=vin, certificate=stolen, key=stolen)
        with field.connected(true) as report:
            first = report()
            moved = field.contact(clone, at=ELSEWHERE)
            field.screen.say("(It may have moved there: nobody can tell. But now the first one goes on.)")
            caught = report()
        both = [field.contact(true), field.contact(clone, at=ELSEWHERE)]
        self._run("fleet", "devices", "--status", "held")
        field.screen.say(
            "In the workshop. The identity's key, which belongs into a secure element, was not copied: an"
            " officer lets the vehicle go on, and with it the vehicle gets another operational certificate:"
        )
        self._run("fleet", "resume", true.id, "--reason", "the vehicle was looked at; it gets a new key")
        field.first_boot(vin, "reset", "local")
        after, again = field.contact(true), field.contact(clone, at=ELSEWHERE)
        return Trial(
            tried="a clone: the same identity at two places at once",
            answer=f"{caught.words}. Both are held; resumed by {OPERATOR}, the true one goes on with a new"
            f" certificate; the clone: {again.status} {again.reason}",
            as_expected=(first.status, moved.status, after.status) == (200, 200, 200)
            and _turned_away(caught, "device-cloned")
            and all(_turned_away(one, "device-held") for one in both)
            and _turned_away(again, "certificate-revoked"),
            leaves={
                "held": kind("field-device-held", true.id, rule="device-cloned"),
                "refused": kind("refused", true.id, rule="device-held"),
                "resumed": kind("field-device-resumed", true.id),
                "clone out": kind("refused", true.id, rule="certificate-revoked", address=ELSEWHERE),
            },
        )

    def recalled(self, vehicle: Vehicle) -> Trial:
        """A vehicle is recalled by two people, and reports again."""
        before = self._field.contact(vehicle)
        proposed = self._run(
            *("recall", "propose", "--device", vehicle.id, "--reason", "keyCompromise", "--json"),
            *("--because", "its control unit was sold on a market"),
            answer=lambda lines: [line for line in lines if '"id"' in line],
        )
        name = json.loads(proposed.stdout)["id"]
        self._run(
            *("recall", "approve", name, "--yes", "--as", f"operators/{SECOND}"),
            answer=lambda lines: lines[-2:],
        )
        after = self._field.contact(vehicle)
        return Trial(
            tried="a vehicle that was let in, and is recalled by two operators; nothing is published yet",
            answer=f"before: {before.status}; at its next contact: {after.words}",
            as_expected=before.status == 200 and _turned_away(after, "certificate-revoked"),
            leaves={
                "recalled": kind("recall-approved"),
                "refused": kind("refused", vehicle.id, rule="certificate-revoked", actor="peer:device"),
            },
        )

    def stranger(self, vin: str) -> Trial:
        """Somebody certifies themselves."""
        key, certificate = self._directory / "foreign.key", self._directory / "foreign.crt"
        self._field.openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/O=Acme Motors/CN={vin}", "-keyout", key, "-out", certificate),
            show=True,
        )
        answer = self._field.contact(Vehicle(vin=vin, certificate=certificate, key=key))
        return Trial(
            tried="a stranger, who has certified themselves",
            answer=answer.words,
            as_expected=answer.status == 0 and "unknown ca" in answer.words,
            leaves={"refused": kind("refused", request="handshake", detail="self-signed")},
        )

    def no_vehicle(self, station: Path) -> Trial:
        """A certificate of this realm, which is no vehicle's."""
        who = Vehicle(vin="", certificate=station / "station.crt", key=station / "station.key")
        answer = self._field.contact(who)
        return Trial(
            tried="a station's certificate: of this realm, and no vehicle's",
            answer=answer.words,
            as_expected=_turned_away(answer, "device-unknown"),
            leaves={"refused": kind("refused", rule="device-unknown")},
        )

    def other_realm(self, directory: Path, name: str) -> Trial:
        """A device of the same maker's, in another realm."""
        who = Vehicle(vin="", certificate=directory / "station.crt", key=directory / "station.key")
        answer = self._field.contact(who)
        return Trial(
            tried=f"a vehicle of another realm ({name}), whose root the gateway knows as another's",
            answer=answer.words,
            as_expected=_turned_away(answer, "wrong-realm"),
            leaves={"refused": kind("refused", rule="wrong-realm")},
        )

    def fleet(self, fleet: Fleet) -> list[Trial]:
        """Boats of another fleet: before it is registered, and after its CRL is there."""
        early = self._field.contact(fleet.good)
        fleet.register()
        fleet.revoke_one()
        good, bad = fleet.arrival(), self._field.contact(fleet.bad)
        device = f"fleet:{NAME}/{fleet.good.vin}"
        return [
            Trial(
                tried="a boat of another fleet, before and after the fleet's owner has shown its key",
                answer=f"before: {early.words}; after: {good.words}",
                as_expected=early.status == 0
                and "unknown ca" in early.words
                and (good.status, good.json.get("device")) == (200, device),
                leaves={
                    "refused": kind("refused", request="handshake", detail="local issuer"),
                    "registered": kind("fleet-registered"),
                    "let in": kind("device-first-seen", device),
                },
            ),
            Trial(
                tried="a boat of the same fleet that its owner's CRL says is revoked",
                answer=bad.words,
                as_expected=_turned_away(bad, "foreign-revoked"),
                leaves={
                    "CRL": kind("foreign-crl-taken"),
                    "refused": kind("refused", rule="foreign-revoked"),
                },
            ),
        ]

    def image_used_up(self, vin: str, image: str) -> Trial:
        """One vehicle more than the image is for."""
        done = self._field.first_boot(vin, "enrol", expect=None)
        said = done.stderr.decode(errors="replace")
        problem = said.partition("{")[2]
        try:
            detail = json.loads("{" + problem.rpartition("}")[0] + "}")["detail"]
        except (ValueError, KeyError) as wrong:
            raise WentWrong(f"the first boot said {said[-300:]!r}") from wrong
        return Trial(
            tried="one vehicle more with the image than the image is for",
            answer=f"quota-exhausted: {detail}",
            as_expected=done.returncode == 1 and "quota-exhausted" in problem,
            leaves={"refused": kind("refused", code="quota-exhausted", actor=f"shared:{image}")},
        )


def _turned_away(answer: Answer, rule: str) -> bool:
    return (answer.status, answer.reason) == (_FORBIDDEN, rule)
