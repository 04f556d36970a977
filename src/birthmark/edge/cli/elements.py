"""``birthmark element``: profiles of secure elements; look, judge a file of one's own, take it in (SPEC D).

A profile of one's own is one TOML file in the directory that the settings name (``elements-directory``).  The
running service reads its profiles when it starts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsJson, SettingsPath
from birthmark.edge.cli.profile_files import put_in_place, read_whole
from birthmark.edge.cli.session import session_of
from birthmark.edge.cli.virtual_elements import virtual
from birthmark.element import catalogue as packaged
from birthmark.element.catalogue import LONGEST_FILE, ElementCatalogue
from birthmark.element.profiles import (
    AnyElementProfile,
    ContentKind,
    DerivedKeys,
    ElementProfile,
    FixedKeys,
    TPMProfile,
)
from birthmark.floor.runs import Run, RunLicence
from birthmark.pki.profiles import Catalogue, ProfileKind
from birthmark.settings import load

__all__ = ["elements"]

elements = typer.Typer(
    name="element", no_args_is_help=True, help="Element profiles: what a secure element is like and gets."
)
elements.command("virtual")(virtual)

File = Annotated[Path, typer.Argument(metavar="FILE.toml", help="Named as the profile is, with .toml.")]


@elements.command("list")
def list_elements(*, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False) -> None:
    """List the element profiles there are."""
    found = [_summary(profile) for profile in _catalogues(settings)[0].profiles.values()]
    if as_json:
        printing.line(printing.json_text(found))
        return
    keys = ("name", "kind", "origin", "sha256")
    printing.columns(keys, ([row[key] for key in keys] for row in found))


@elements.command("show")
def show_element(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show what a profile says of its elements: how to speak to one, whose keys it gets, what is stored."""
    _say(_document(_catalogues(settings)[0].load(name)), as_json=as_json)


@elements.command("lint")
def lint_element(file: File, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False) -> None:
    """Judge a profile: read it, search it for contradictions, and show what was understood."""
    profile, _ = _read(file, settings)
    _say(_document(profile), as_json=as_json)


@elements.command("add")
def add_element(context: typer.Context, file: File, *, settings: SettingsPath = DEFAULT_SETTINGS) -> None:
    """Judge a profile and take it into the settings' elements-directory; start the service again to use it.

    A profile that a run was signed for is never replaced: give the new one another name.
    """
    profile, octets = _read(file, settings)
    directory = load(settings).elements_directory
    if directory is None:
        raise errors.NotFound(f"{settings} names no elements-directory")
    with session_of(context).application(settings) as application:
        for run in application.store.scan(Run):
            licence = RunLicence.decode(run.document)
            if licence.element == profile.name and licence.element_sha256 != profile.sha256:
                raise errors.IllegalTransition(
                    f"run {run.id} was signed for another element profile {profile.name}:"
                    " give this one another name"
                )
        missing = sorted(_labels(profile) - set(application.keys.labels()))
    put_in_place(directory, f"{profile.name}.toml", octets)
    for label in missing:
        printing.line(f"note: the key store has no key {label} yet: a key ceremony makes it")
    printing.line(
        f"element profile {profile.name} is in {directory};"
        " a running service knows it when it is started again"
    )


def _catalogues(settings: Path) -> tuple[ElementCatalogue, Catalogue]:
    """Return the profiles of an installation; the packaged ones where there are no settings."""
    if settings == DEFAULT_SETTINGS and not settings.exists():
        return ElementCatalogue.read(), Catalogue.read()
    loaded = load(settings)
    return ElementCatalogue.read(loaded.elements_directory), Catalogue.read(loaded.profiles_directory)


def _read(file: Path, settings: Path) -> tuple[AnyElementProfile, bytes]:
    octets = read_whole(file, LONGEST_FILE)
    profile = packaged.parse(octets, file.name)
    if profile.name in packaged.names():
        raise errors.IllegalTransition(
            f"{profile.name} is a packaged element profile: give this one another name"
        )
    _, certificates = _catalogues(settings)
    for stored in profile.objects if isinstance(profile, ElementProfile) else ():
        name = stored.argument if stored.kind is ContentKind.CERTIFICATE else ""
        if name and certificates.load(name).kind is not ProfileKind.DEVICE:
            raise errors.MalformedRequest(
                f"element profile {file.name}: objects: {name} is no profile of a device's certificates"
            )
    return profile, octets


def _labels(profile: AnyElementProfile) -> set[str]:
    if isinstance(profile, TPMProfile):
        return set()
    return {*profile.initial.labels, *profile.final.labels}


def _summary(profile: AnyElementProfile) -> dict[str, str]:
    return {
        "name": profile.name,
        "kind": str(profile.kind),
        "origin": "packaged" if profile.name in packaged.names() else "own",
        "sha256": profile.sha256,
    }


def _document(profile: AnyElementProfile) -> dict[str, Any]:
    if isinstance(profile, TPMProfile):
        return {
            **_summary(profile),
            "anchors": len(profile.anchors),
            "intermediates": len(profile.intermediates),
        }
    return {
        **_summary(profile),
        "aid": profile.aid.hex().upper(),
        "mode": profile.mode.name.lower(),
        "parameters": [f"{value:02X}" for value in sorted(profile.parameters)],
        "key_size": profile.key_size,
        "initial": _keys(profile.initial),
        "final": _keys(profile.final),
        "replacement": str(profile.replacement),
        "key_blocks": str(profile.key_blocks),
        "probe_kvn": f"{profile.probe_kvn:02X}",
        "other_key_sets": [f"{kvn:02X}" for kvn in sorted(profile.other_key_sets)],
        "probe_check_value": profile.probe_check_value,
        "bare_key_information": profile.bare_key_information,
        "counts_empty_commands": profile.counts_empty_commands,
        "extended_length": profile.extended_length,
        "failed_authentications": profile.failed_authentications,
        "tries": profile.tries,
        "objects": [f"{stored.tag:02X} {stored.content}" for stored in profile.objects],
    }


def _keys(keys: DerivedKeys | FixedKeys) -> str:
    if isinstance(keys, FixedKeys):
        return f"{keys.kvn:02X}: {', '.join(keys.labels)}"
    return f"{keys.kvn:02X}: {keys.scheme} of {keys.master} by {keys.context}"


def _say(shown: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        printing.line(printing.json_text(shown))
        return
    printing.fields(
        {key: ", ".join(value) or None if isinstance(value, list) else value for key, value in shown.items()}
    )
