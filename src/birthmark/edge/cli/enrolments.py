"""``birthmark enrolment``: requests by EST and CMP that a person looks at (SPEC H1).

Runs opened with ``--approval`` have some.  What is shown of a request is what can be compared with the
device: its id, and the SHA-256 of its certification request.
"""

from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.enrolments import WAITING_LIFE, WaitingEnrolment, WaitingStatus
from birthmark.ports import carry

__all__ = ["enrolments"]

enrolments = typer.Typer(
    name="enrolment", no_args_is_help=True, help="Requests for certificates that wait for a person."
)
EnrolmentId = Annotated[str, typer.Argument(metavar="ID", help="As 'enrolment list' shows it.")]


def document(one: WaitingEnrolment) -> dict[str, object]:
    """Return a request as it is shown."""
    return {
        "id": one.id,
        "status": str(one.status),
        "device": one.device,
        "run": one.run,
        "client": one.client,
        "csr_sha256": one.csr_sha256 or None,
        "since": one.asked_at,
        "until": one.asked_at + WAITING_LIFE,
        "decided_by": one.decided_by,
        "reason": one.reason,
    }


@enrolments.command("list")
def list_enrolments(
    context: typer.Context,
    *,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="Only under this run.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also those that were settled, or waited too long.")
    ] = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """List what waits, the oldest first; compare csr_sha256 with the device's request before you approve."""
    with session_of(context).application(settings) as application:
        now = application.clock.now()
        found = [
            document(one)
            for one in sorted(
                application.store.scan(WaitingEnrolment), key=lambda one: (one.asked_at, one.id)
            )
            if (run is None or one.run == run)
            and (every or (one.status is WaitingStatus.WAITING and now < one.asked_at + WAITING_LIFE))
        ]
    if as_json:
        printing.line(printing.json_text(found))
        return
    heads = ("id", "status", "device", "run", "client", "csr_sha256", "since")
    printing.columns(heads, ([row[head] for head in heads] for row in found))


@enrolments.command()
def show(
    context: typer.Context,
    enrolment: EnrolmentId,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show a request, and who settled it and why."""
    with session_of(context).application(settings) as application:
        facts = application.store.look({WaitingEnrolment: (enrolment,)})
        found = facts.get(WaitingEnrolment, enrolment)
    if found is None:
        raise errors.NotFound(f"there is no enrolment {enrolment[:100]}")
    shown = document(found)
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        printing.fields(shown)


@enrolments.command()
def approve(
    context: typer.Context,
    enrolment: EnrolmentId,
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Let a request go on: the device gets its certificate when it asks again."""
    _settle(context, settings, as_directory, enrolment, reason, approved=True)


@enrolments.command()
def refuse(
    context: typer.Context,
    enrolment: EnrolmentId,
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Refuse a request; the device is told the reason when it asks again."""
    _settle(context, settings, as_directory, enrolment, reason, approved=False)


def _settle(
    context: typer.Context,
    settings: SettingsPath,
    as_directory: AsDirectory,
    enrolment: str,
    reason: str,
    *,
    approved: bool,
) -> None:
    with session_of(context).acting(settings, as_directory) as (application, operator):
        settling = application.approvals.settle(operator.caller, enrolment, approved=approved, reason=reason)
        settled = carry(application.store, settling)
    printing.line(f"enrolment {settled.id} of {settled.device} is {settled.status}")
