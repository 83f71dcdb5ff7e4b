"""A client for one command, with a witness of what happens inside its calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attrs import field, frozen

from kms_core.cli import configuration
from kms_core.cli.exits import say
from kms_core.cli.options import Invocation
from kms_core.client import Kms
from kms_core.settings import Settings
from kms_core.types import Event


@frozen
class Witness:
    """An observer that remembers: a call returns bytes only, its events say who did not help."""

    events: list[Event] = field(factory=list)

    @property
    def missing(self) -> tuple[str, ...]:
        """The instances that should hold the data key and do not."""
        return tuple(name for event in self.events for name in event.missing)

    @property
    def unverified(self) -> tuple[str, ...]:
        """The instances whose new wrap could not be proved."""
        return tuple(name for event in self.events for name in event.unverified)

    @property
    def wrapped(self) -> tuple[str, ...]:
        """The instances that now hold the data key and, as far as asked, did not before."""
        names = [event.instance for event in self._wraps() if event.outcome == "ok"]
        return tuple(name for name in dict.fromkeys(names) if name and name not in self.missing)

    def name_of(self, key_uri: str) -> str:
        """The instance that was to wrap under this key, or the URI if none was asked."""
        names = (event.instance for event in self._wraps() if event.key_uri == key_uri)
        return next(filter(None, names), key_uri)

    def why(self, name: str) -> str:
        """Why this instance did not wrap."""
        codes = [event.outcome for event in self._wraps() if event.instance == name]
        return codes[-1].replace("_", " ") if codes else "no answer in time"

    def _wraps(self) -> list[Event]:
        return [event for event in self.events if event.operation == "encrypt"]


@contextmanager
def connect(invocation: Invocation) -> Iterator[tuple[Kms, Witness]]:
    """The configured client; after success, ``--verbose`` tells which configuration that was."""
    raw = configuration.find(invocation.config)
    settings = Settings.from_raw(raw)
    witness = Witness()
    with Kms(settings, observe=witness.events.append) as kms:
        yield kms, witness
    if invocation.verbose:
        say(f"configuration: {raw.source}")
