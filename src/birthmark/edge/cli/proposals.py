"""``birthmark proposal``: what one person proposed and another makes true (SPEC K1).

Proposals are made by the commands that would otherwise act (``authority suspend``, ``operator enrol``);
``put`` is how those make one.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.session import Operator, session_of
from birthmark.floor.clients import PROPOSAL_LIFE
from birthmark.floor.proposals import Deed, Motion, Proposal, ProposalStatus
from birthmark.ports import carry

__all__ = ["proposals", "put"]

proposals = typer.Typer(
    name="proposal", no_args_is_help=True, help="What takes two people: look at it, approve it, withdraw it."
)
ProposalId = Annotated[str, typer.Argument(metavar="ID")]


def put(
    application: Application, someone: Operator, deed: Deed, subject: str, terms: dict[str, str], reason: str
) -> None:
    """Sign a motion as the first person, put it on record, and say what the second has to do."""
    service = application.proposals
    motion = service.draft(someone.caller, deed, subject, terms, reason)
    signature = someone.sign(motion.encode())
    proposed = carry(application.store, service.propose(someone.caller, motion, signature))
    printing.fields(_document(proposed, motion))
    printing.line(f"another officer approves it within {PROPOSAL_LIFE // timedelta(hours=1)} hours, with")
    printing.line(f"  birthmark proposal approve {proposed.id} --as operators/NAME")


def _document(proposal: Proposal, motion: Motion) -> dict[str, Any]:
    return {
        "id": proposal.id,
        "status": str(proposal.status),
        "deed": str(motion.deed),
        "subject": motion.subject,
        "terms": dict(motion.terms),
        "reason": motion.reason,
        "proposed_by": motion.proposed_by,
        "proposed_at": proposal.proposed_at,
        "ends_at": proposal.proposed_at + PROPOSAL_LIFE,
        "proposer": proposal.proposer,
        "approver": proposal.approver,
    }


def _say(shown: Mapping[str, Any]) -> None:
    terms = ", ".join(f"{name} {value}" for name, value in sorted(shown["terms"].items()))
    printing.fields({**shown, "terms": terms})


@proposals.command("list")
def list_proposals(
    context: typer.Context,
    *,
    status: Annotated[ProposalStatus | None, typer.Option(help="Only these.")] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """List the proposals; whether they were signed is told by 'show' and 'check'."""
    with session_of(context).application(settings) as application:
        found = [
            _document(one, Motion.decode(one.document))
            for one in application.store.scan(Proposal)
            if status is None or one.status is status
        ]
    found.sort(key=lambda one: (one["proposed_at"], one["id"]))
    if as_json:
        printing.line(printing.json_text(found))
        return
    keys = ("id", "status", "deed", "subject", "proposed_by", "ends_at")
    printing.columns(keys, ([row[key] for key in keys] for row in found))


@proposals.command()
def show(
    context: typer.Context,
    proposal: ProposalId,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show what is proposed, its signatures verified."""
    with session_of(context).application(settings) as application:
        shown = _document(*carry(application.store, application.proposals.get(proposal)))
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        _say(shown)


@proposals.command()
def approve(
    context: typer.Context,
    proposal: ProposalId,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Sign it as the second person; what it says is done in the same commit."""
    if as_json and not yes:
        raise errors.MalformedRequest("--json shows nothing to decide on: give --yes, too")
    with session_of(context).acting(settings, as_directory) as (application, operator):
        found, motion = carry(application.store, application.proposals.get(proposal))
        if not as_json:
            _say(_document(found, motion))
        if not yes:
            typer.confirm(f"{motion.deed} {motion.subject}?", abort=True, err=True)
        approval = operator.sign(found.document)
        done = carry(application.store, application.proposals.approve(operator.caller, proposal, approval))
        shown = _document(done, motion)
    if as_json:
        printing.line(printing.json_text(shown))
        return
    printing.line(f"proposal {done.id} is {done.status}: {motion.deed} {motion.subject}")
    if motion.deed is Deed.ENROL_PERSON:
        name = motion.subject.partition(":")[2]
        printing.line(f"the certificate: birthmark operator fetch {name} --out DIR")


@proposals.command()
def withdraw(
    context: typer.Context,
    proposal: ProposalId,
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Take a proposal back before it is approved."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        taken = carry(application.store, application.proposals.withdraw(operator.caller, proposal, reason))
    printing.line(f"proposal {taken.id} is {taken.status}")
