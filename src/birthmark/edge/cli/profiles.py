"""``birthmark profile``: what certificates contain; look, judge a file of one's own, take it in (SPEC G).

A profile of one's own is one TOML file in the directory that the settings name (``profiles-directory``).
It is judged before it is taken in: read, searched for contradictions, and a certificate made for every key it
allows, which our rules and the inspector must accept.  The running service reads its profiles when it starts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.inputs import pairs
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsJson, SettingsPath
from birthmark.edge.cli.profile_files import put_in_place, read_whole
from birthmark.edge.cli.session import Session, session_of
from birthmark.floor.runs import Run, RunLicence
from birthmark.pki import profiles as packaged
from birthmark.pki.profiles import Catalogue, Profile
from birthmark.services.inspection import ProfileReport, inspect_profile
from birthmark.settings import load

__all__ = ["profiles"]

profiles = typer.Typer(
    name="profile", no_args_is_help=True, help="Certificate profiles: what a certificate contains."
)
_LONGEST = 65_536

File = Annotated[Path, typer.Argument(metavar="FILE.toml", help="Named as the profile is, with .toml.")]
Variable = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="For the sample certificates; the others are made up."),
]


@profiles.command("list")
def list_profiles(*, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False) -> None:
    """List the profiles there are."""
    found = [_summary(profile) for profile in _catalogue(settings).profiles.values()]
    if as_json:
        printing.line(printing.json_text(found))
        return
    keys = ("name", "kind", "origin", "title")
    printing.columns(keys, ([row[key] for key in keys] for row in found))


@profiles.command("show")
def show_profile(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show what a profile's certificates contain, what it asks of their values, and what it waives."""
    shown = _document(_catalogue(settings).load(name))
    if as_json:
        printing.line(printing.json_text(shown))
        return
    tables = {key: shown.pop(key) for key in ("constraints", "waivers")}
    printing.fields(
        {key: ", ".join(value) or None if isinstance(value, list) else value for key, value in shown.items()}
    )
    for constraint in tables["constraints"]:
        rest = {key: value for key, value in constraint.items() if key not in {"rule", "variable", "rejects"}}
        said = ", ".join(f"{key} {value}" for key, value in rest.items())
        printing.line(f"constraint {constraint['rule']}: {constraint['variable']} {said}")
    for waiver in tables["waivers"]:
        printing.line(f"waiver {waiver['linter']} {waiver['finding']}: {waiver['reason']}")


@profiles.command("lint")
def lint_profile(
    context: typer.Context,
    file: File,
    *,
    variable: Variable = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Judge a profile: have a certificate inspected for every key it allows; exit 1 if one is refused."""
    profile, _ = _read(file)
    report = _judged(session_of(context), _catalogue(settings), profile, variable)
    if as_json:
        printing.line(printing.json_text(_report(profile, report)))
    else:
        _say(profile, report)
    raise typer.Exit(0 if report.accepted else 1)


@profiles.command("add")
def add_profile(
    context: typer.Context,
    file: File,
    *,
    variable: Variable = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """Judge a profile and take it into the settings' profiles-directory; start the service again to use it.

    A profile that a run was signed for is never replaced: give the new one another name.
    """
    profile, octets = _read(file)
    directory = load(settings).profiles_directory
    if directory is None:
        raise errors.NotFound(f"{settings} names no profiles-directory")
    report = _judged(session_of(context), _catalogue(settings), profile, variable)
    if not report.accepted:
        _say(profile, report)
        raise errors.PolicyRefused("profile", f"profile {profile.name} is not taken in: see above")
    with session_of(context).application(settings) as application:
        for run in application.store.scan(Run):
            for name, pinned in RunLicence.decode(run.document).profiles:
                if name == profile.name and pinned != profile.sha256:
                    raise errors.IllegalTransition(
                        f"run {run.id} was signed for another profile {name}: give this one another name"
                    )
    put_in_place(directory, f"{profile.name}.toml", octets)
    printing.line(
        f"profile {profile.name} is in {directory}; a running service knows it when it is started again"
    )


def _catalogue(settings: Path) -> Catalogue:
    """Return the profiles of an installation; the packaged ones where there are no settings."""
    if settings == DEFAULT_SETTINGS and not settings.exists():
        return Catalogue.read()
    return Catalogue.read(load(settings).profiles_directory)


def _read(file: Path) -> tuple[Profile, bytes]:
    octets = read_whole(file, _LONGEST)
    profile = packaged.parse(octets, file.name)
    if profile.name in packaged.names():
        raise errors.IllegalTransition(f"{profile.name} is a packaged profile: give this one another name")
    return profile, octets


def _judged(
    session: Session, catalogue: Catalogue, profile: Profile, variables: list[str] | None
) -> ProfileReport:
    factory = session.factory()
    given = pairs(variables or [])
    unknown = sorted(given.keys() - profile.variables)
    if unknown:
        raise errors.MalformedRequest(f"profile {profile.name} does not use {', '.join(unknown)}")
    return inspect_profile(catalogue, profile, factory.inspector(), given, factory.clock().now())


def _summary(profile: Profile) -> dict[str, str]:
    return {
        "name": profile.name,
        "kind": str(profile.kind),
        "origin": "packaged" if profile.name in packaged.names() else "own",
        "title": profile.title,
        "sha256": profile.sha256,
    }


def _document(profile: Profile) -> dict[str, Any]:
    validity = profile.validity
    return {
        **_summary(profile),
        "issued_by": list(profile.issued_by),
        "subject_key_algorithms": [str(one) for one in profile.subject_key_algorithms],
        "issuer_key_algorithms": [str(one) for one in profile.issuer_key_algorithms],
        "validity": "no well-defined expiry" if validity is None else str(validity),
        "subject": [f"{part.attribute}={part.value.source}" for part in profile.subject],
        "extensions": [extension.name.lower() for extension in profile.extensions],
        "key_usage": [str(usage) for usage in profile.key_usage],
        "extended_key_usage": list(profile.extended_key_usage),
        "max_der_size": profile.max_der_size,
        "variables": sorted(profile.variables),
        "required_variables": sorted(profile.required_variables),
        "constraints": [constraint.table() for constraint in profile.constraints],
        "waivers": [
            {"linter": waiver.linter, "finding": waiver.finding, "reason": waiver.reason}
            for waiver in profile.waivers
        ],
    }


def _report(profile: Profile, report: ProfileReport) -> Mapping[str, Any]:
    return {
        "name": profile.name,
        "sha256": profile.sha256,
        "accepted": report.accepted,
        "values": dict(report.values),
        "inspections": [inspection.document() for inspection in report.inspections],
        "refusals": [
            {"subject_key_algorithm": str(algorithm), "complaint": str(refusal)}
            for algorithm, refusal in report.refusals
        ],
        "negative_tests": [
            {"rule": test.rule, "tried": test.tried, "refused_with": test.refused_with}
            for test in report.negative_tests
        ],
        "unused_waivers": _unused(profile, report),
    }


def _unused(profile: Profile, report: ProfileReport) -> list[str]:
    found = {finding.code for inspection in report.inspections for finding, _ in inspection.findings}
    return sorted(waiver.finding for waiver in profile.waivers if waiver.finding not in found)


def _say(profile: Profile, report: ProfileReport) -> None:
    for inspection in report.inspections:
        printing.line(f"{inspection.algorithm}: {len(inspection.certificate)} octets, {inspection.inspector}")
        for finding, reason in inspection.findings:
            said = f"  {finding.severity} {finding.code}" + (f": {finding.detail}" if finding.detail else "")
            printing.line(printing.shown(said + (f" (waived: {reason})" if reason is not None else "")))
    for algorithm, refusal in report.refusals:
        printing.line(printing.shown(f"{algorithm}: refused by our own rules: {refusal}"))
    for code in _unused(profile, report):
        printing.line(printing.shown(f"note: the waiver of {code} was not needed"))
    printing.line(
        f"{len(profile.constraints)} constraints refused all of {len(report.negative_tests)} wrong values"
    )
    verdict = "accepted" if report.accepted else "NOT accepted"
    printing.line(f"profile {profile.name} is {verdict}; its sha-256 is {profile.sha256}")
