"""``new-plugin``: a provider's distribution to begin with, which works as it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Final

import click

from kms_core.errors import InvalidRequest
from kms_core.plugins import KNOWN_DISTRIBUTIONS

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MAX_NAME: Final = 32  # generated lines stay within 100 columns
_SUFFIX: Final = ".txt"  # so that no tool takes a template for code of ours


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--directory",
    metavar="DIR",
    default=".",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where to make the folder kms-NAME (default: here).",
)
def new_plugin(name: str, directory: Path) -> None:
    """Write a plugin for a key service of your own, and overwrite nothing.

    Makes the folder kms-NAME with the package, its settings and table of errors, a service in
    memory to be replaced, and tests that pass.
    """
    values = _values(name)
    target = directory / values["distribution"]
    try:
        target.mkdir()
    except FileExistsError:
        raise InvalidRequest(
            f"{target} is there already: choose another name or --directory"
        ) from None
    for path, text in _files(values):
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    click.echo(f"wrote {target}: {values['package']}/service.py is what to replace first")
    installed, tested = shlex.quote(f"{target}[test]"), shlex.quote(str(target))
    click.echo(f"try: pip install -e {installed} && pytest {tested} && kms plugins")


def _values(name: str) -> Mapping[str, str]:
    """What the templates' placeholders stand for; raises ``InvalidRequest`` for a bad name."""
    from kms_core.cli.group import BUILTINS

    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise InvalidRequest(
            f"{name!r} cannot be the name of a provider: use up to {_MAX_NAME} lower-case "
            "letters, digits and hyphens, a letter first, such as acme-vault"
        )
    if name.startswith("kms-"):
        raise InvalidRequest(f"leave out kms-: {name!r} would make kms-{name}")
    if name in {*KNOWN_DISTRIBUTIONS, *BUILTINS}:
        raise InvalidRequest(f"{name!r} is taken by kms itself: choose another name")
    major, minor, *_ = version("kms-core").split(".")
    words = name.split("-")
    return {
        "name": name,
        "title": " ".join(words).title(),
        "cls": "".join(word.capitalize() for word in words),
        "package": f"kms_{'_'.join(words)}",
        "distribution": f"kms-{name}",
        "core": f"{major}.{minor}",
        "next_core": f"{major}.{int(minor) + 1}" if major == "0" else str(int(major) + 1),
    }


def _files(values: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Every file of the new distribution, relative to its folder, and what is in it."""
    for template, path in _templates(files("kms_core.cli").joinpath("templates", "plugin")):
        text = Template(template.read_text(encoding="utf-8")).substitute(values)
        yield Path(*(values["package"] if part == "package" else part for part in path)), text


def _templates(folder: Traversable, *above: str) -> Iterator[tuple[Traversable, tuple[str, ...]]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _templates(entry, *above, entry.name)
        else:
            yield entry, (*above, entry.name.removesuffix(_SUFFIX))
