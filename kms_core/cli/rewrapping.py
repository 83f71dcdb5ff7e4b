"""``rewrap``: other recipients for an envelope of any size, whose body is copied unread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click
from attrs import frozen

from kms_core.cli import files, forms
from kms_core.cli.exits import say
from kms_core.cli.options import Invocation, file_argument, invocation, output_option
from kms_core.cli.progress import Meter
from kms_core.errors import RewrapConflict
from kms_core.files import NewFile

if TYPE_CHECKING:
    import io

    from kms_core.cli.clients import Witness
    from kms_core.client import Kms
    from kms_core.inspection import EnvelopeInfo


@click.command()
@file_argument
@output_option()
@click.option(
    "--repair/--no-repair",
    default=True,
    show_default=True,
    help="Add every configured recipient that is missing.",
)
@click.option("--add", metavar="NAME", multiple=True, help="Add this instance. Repeatable.")
@click.option(
    "--remove",
    metavar="NAME|URI",
    multiple=True,
    help="Remove the recipients of this instance, or with this key URI. Repeatable.",
)
@invocation
def rewrap(
    invocation: Invocation,
    file: Path | None,
    output: Path | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    *,
    repair: bool,
) -> None:
    """Change who can open FILE (default: stdin), of any size, without reading its body.

    Without -o a FILE is replaced by its rewrapped copy, unless somebody else changed it meanwhile;
    stdin is rewrapped to stdout. The capsule of a compact FILE changes in the configured store.
    """
    from kms_core.cli.clients import connect

    in_place = file if output is None else None
    if in_place is not None:
        _refuse_special(in_place)
    with files.reading(file) as source, connect(invocation) as (kms, witness):
        text = forms.is_text(source)
        rewrapper = _Rewrapper(kms, add, remove, repair=repair)
        if in_place is None:
            forms.refuse_terminal(output, text=text)
            change = _rewrap_to(rewrapper, source, output, text=text)
        elif text:
            change = _rewrap_text(rewrapper, source, in_place)
        else:
            change = _rewrap_file(rewrapper, source, in_place)
        say(_summary(change, witness, remove))


@frozen
class _Rewrapper:
    """A client, and what it is to change."""

    kms: Kms
    add: tuple[str, ...]
    remove: tuple[str, ...]
    repair: bool

    def start(self, head: bytes) -> bytes:
        """The start of an envelope with its new capsule, whatever follows."""
        return self.kms.rewrap(head, add=self.add, remove=self.remove, repair=self.repair)

    def file(self, path: Path) -> None:
        """A whole file with a capsule, in place."""
        self.kms.rewrap_file(path, add=self.add, remove=self.remove, repair=self.repair)


@frozen
class _Change:
    """What the envelope said of itself before and after."""

    before: EnvelopeInfo
    after: EnvelopeInfo


def _change(before: bytes, after: bytes) -> _Change:
    """From the first bytes of either."""
    from kms_core.inspection import inspect

    return _Change(inspect(before), inspect(after))


# --- where to ------------------------------------------------------------------------------------


def _rewrap_to(
    rewrapper: _Rewrapper, source: io.BufferedReader, output: Path | None, *, text: bool
) -> _Change:
    """Into another file or to stdout, in the form in which it comes."""
    if text:
        old = forms.decode(forms.read_text(source))
        new = rewrapper.start(old)
        files.write(output, forms.as_text(new))
        return _change(old, new)
    total = files.remaining(source)
    old = source.read(forms.HEAD_BYTES)
    new = rewrapper.start(old)
    with Meter(total) as meter, files.writing(output) as target:
        files.put(target, new)
        meter(len(old))
        files.copy(source, target, meter)
    return _change(old, new)


def _rewrap_file(rewrapper: _Rewrapper, source: IO[bytes], file: Path) -> _Change:
    """In place, or in the store if the file is compact: then it stays as it is."""
    old = source.read(forms.HEAD_BYTES)
    if not _change(old, old).before.inline:
        return _change(old, rewrapper.start(old))
    with files.naming(file):
        rewrapper.file(file)
    with files.reading(file) as rewrapped:
        return _change(old, rewrapped.read(forms.HEAD_BYTES))


def _rewrap_text(rewrapper: _Rewrapper, source: IO[bytes], file: Path) -> _Change:
    """In place, if the text is still what was read."""
    text = forms.read_text(source)
    old = forms.decode(text)
    new = rewrapper.start(old)

    def check() -> None:
        if file.read_bytes() != text:
            raise RewrapConflict(f"{file} was changed by somebody else meanwhile")

    if new != old:
        with files.naming(file), NewFile(file, before_rename=check) as rewritten:
            files.put(rewritten.stream, forms.as_text(new))
    return _change(old, new)


def _refuse_special(file: Path) -> None:
    """A pipe or a device cannot be rewritten in place."""
    if file.exists() and not file.is_file():
        raise click.UsageError(f"{file} is not a regular file: say with -o where to write")


# --- what happened -------------------------------------------------------------------------------


def _summary(change: _Change, witness: Witness, asked_to_remove: Sequence[str]) -> str:
    """One line on what a rewrap did and who holds the key now."""
    if change.before.inline:
        removed = sorted(_uris(change.before) - _uris(change.after))
        missing = [witness.name_of(uri) for uri in change.after.missing]
        number = len(change.after.recipients)
        holders = f"{number} recipient{'' if number == 1 else 's'}, "
    else:  # what the store held before is not known here; had they not been there, it had failed
        removed, missing, holders = list(asked_to_remove), list(witness.missing), "capsule store: "
    done = _done(witness, removed) or [
        "nothing to do" if change.before == change.after else "noted who is missing"
    ]
    if witness.unverified:
        names = ", ".join(witness.unverified)
        done.append(f"not verified for lack of permission to unwrap: {names}")
    done.append(holders + (f"missing {', '.join(missing)}" if missing else "none missing"))
    return ("degraded: " if missing else "") + "; ".join(done)


def _done(witness: Witness, removed: Sequence[str]) -> list[str]:
    done = []
    if witness.wrapped:
        done.append(f"added {', '.join(witness.wrapped)}")
    if removed:
        done.append(f"removed {', '.join(removed)}")
    return done


def _uris(info: EnvelopeInfo) -> set[str]:
    return {recipient.key_uri for recipient in info.recipients}
