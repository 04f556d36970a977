"""Ceremonies as people conduct them: with the command alone."""

import hashlib
from pathlib import Path

from tests.edge.cli.command import Place, done

__all__ = ["custodians", "draft", "papers_of", "sha256", "there"]

PEOPLE = ("carla", "dora", "emil")


def sha256(file: Path) -> str:
    """Return what a custodian says was reviewed."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def custodians(place: Path) -> list[str]:
    """Make three credentials below a directory, and return what ``template`` is told about them."""
    for name in PEOPLE:
        if not (place / name).exists():
            done("ceremony", "custodian", name, place / name)
    return [word for name in PEOPLE for word in ("--custodian", f"{name}={place / name / f'{name}.pem'}")]


def papers_of(place: Path, *, prefix: str = "") -> list[str]:
    """Write the ceremony of a new production realm ``nord``; return the options with two custodians there."""
    people = custodians(place)
    file, root = place / "nord.yaml", place / "root-store"
    template = ("ceremony", "template", "realm", "--id", "nord-1")
    names = ("--realm", "nord", "--organization", "Nord AG")
    options = ("--environment", "production", "--ends", "2035-01-01", "--key-prefix", prefix)
    file.write_text(done(*template, *names, *options, *people).out)
    if not root.exists():
        done("ceremony", "store", root)
    attending = [word for name in PEOPLE[:2] for word in ("--custodian", str(place / name))]
    second = ["--operator", "bela"]  # production begins with two officers
    return [
        *second,
        *attending,
        "--ceremony",
        str(file),
        "--reviewed",
        sha256(file),
        "--store",
        f"root={root}",
    ]


def draft(realm: Place, place: Path, kind: str, *options: object) -> Path:
    """Write the file of an authority ``trucks`` in a realm."""
    file = place / "trucks.yaml"
    said = realm.done("ceremony", "template", kind, "--id", "nord-2", "--authority", "trucks", *options)
    file.write_text(said.out)
    return file


def there(realm: Place, file: Path) -> list[object]:
    """Return the options with which the first operator attends."""
    return ["--custodian", realm.directory / "operators/anna", "--reviewed", sha256(file)]
