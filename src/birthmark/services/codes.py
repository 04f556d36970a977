"""One-time codes for devices that come by themselves and have no certificate to show (SPEC C9, H1).

A code is a bootstrap client whose credential is a salt on record; the code itself is derived from it
(``recognition.Codes``), told once and kept nowhere.  It is for one device of one run, good until it ends or
is revoked, and its name is good once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from birthmark import errors
from birthmark.floor.clients import Capability, Client, ClientStatus, Credential, Role, check_name, client_id
from birthmark.floor.runs import AllowedDevice, Run, RunLicence, require_going, require_identities
from birthmark.ledger.entry import time_text
from birthmark.ports import Decision, Entropy, Facts, UseCase
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller, decided, live_client, recorded
from birthmark.services.authorise import enrolled_entry
from birthmark.services.recognition import SALT_OCTETS, Codes, code_serial
from birthmark.services.runs import RunContext, Runs

__all__ = ["LONGEST_CODE", "Guest", "give_code"]

SHORTEST_CODE, LONGEST_CODE = timedelta(minutes=1), timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A device that somebody expects."""

    name: str
    """What the code goes by: the user name of HTTP Basic, the reference of a MAC."""
    device: str
    """Kind and hardware id, e.g. ``vin:1M8GDM9AXKP042788``."""
    run: str
    life: timedelta = timedelta(hours=24)

    def __post_init__(self) -> None:
        """Refuse names that cannot stand in an id, and times that make no sense."""
        check_name("bootstrap", self.name)
        if not SHORTEST_CODE <= self.life <= LONGEST_CODE:
            raise errors.MalformedRequest(
                f"a code is good for at least a minute and at most {LONGEST_CODE.days} days"
            )


def give_code(
    codes: Codes, runs: Runs, entropy: Entropy, caller: Caller, guest: Guest
) -> UseCase[tuple[SecretBytes, Credential]]:
    """Make a code and put what it is derived from on record; return it, and the credential it is.

    Raises:
        errors.NotFound: there is no such run.
        errors.IllegalTransition: the name was used, or the run is proposed only, closed or over.
        errors.NotPermitted: the caller may not let devices in, or the run is for devices that have their
            identity.
        errors.PolicyRefused: the run does not make such a device (rules ``hardware-id``,
            ``hardware-id-is-listed``).
        errors.Unavailable: the log's key cannot be used now.
    """
    said = {"client": client_id(Role.BOOTSTRAP, guest.name), "run": guest.run[:64], "device": guest.device}
    context: RunContext = yield from recorded(caller, "give-code", said, runs.known(guest.run))
    salt = entropy.token(SALT_OCTETS)
    code = codes.text(guest.name, salt)
    licence = context.licence

    def decide(facts: Facts, at: datetime) -> Decision[Credential]:
        live_client(facts, caller, Capability.ENROL_STATION, at)
        if facts.get(Client, said["client"]) is not None:
            raise errors.IllegalTransition(f"the name {guest.name} was used: give the code another")
        _require_expected(facts, licence, guest.device, at)
        client = Client(
            id=said["client"],
            role=Role.BOOTSTRAP,
            site="",
            line="",
            hardware_id=guest.device,
            run=guest.run,
            status=ClientStatus.ACTIVE,
            last_seq=0,
        )
        credential = Credential(
            serial=code_serial(guest.name),
            client=client.id,
            authority=licence.authority,
            profile=str(Role.BOOTSTRAP),
            der=salt,
            not_after=at + guest.life,
            status=ClientStatus.ACTIVE,
        )
        facts.put(client)
        facts.put(credential)
        entry: Mapping[str, Any] = {
            **enrolled_entry(client, credential),
            "until": time_text(credential.not_after),
        }
        return Decision(credential, [("client-enrolled", entry)])

    reads = {Client: (said["client"],), Run: (guest.run,)}
    return code, (yield from decided(caller, "give-code", said, decide, reads))


def _require_expected(facts: Facts, licence: RunLicence, device: str, at: datetime) -> None:
    """Refuse a code by which nothing could ever be had."""
    run = facts.get(Run, licence.id)
    if run is None:
        raise errors.IntegrityFailure(f"run {licence.id} is gone")
    require_going(run, licence, at)
    require_identities(licence)
    kind, _, text = device.partition(":")
    if kind != licence.hardware_id.kind:
        raise errors.PolicyRefused(
            "hardware-id", f"run {run.id} makes devices called by their {licence.hardware_id.kind}"
        )
    try:
        licence.hardware_id.parse(text)
    except errors.MalformedRequest as cause:
        raise errors.PolicyRefused("hardware-id", f"run {run.id} does not make {device}: {cause}") from cause
    listed = licence.allow_list
    if listed is not None and facts.get(AllowedDevice, AllowedDevice.key(listed, device)) is None:
        raise errors.PolicyRefused("hardware-id-is-listed", f"{device} is not on the list of run {run.id}")
