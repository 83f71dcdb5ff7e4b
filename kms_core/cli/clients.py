"""A client for one command, with a witness of what happens inside its calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import field, frozen

from kms_core.cli import configuration
from kms_core.cli.exits import say
from kms_core.cli.options import Invocation
from kms_core.client import Kms
from kms_core.errors import InvalidRequest
from kms_core.settings import InstanceConfig, Settings
from kms_core.types import Event


@frozen
class Witness:
    """An observer that remembers: a call returns bytes only, its events say who did not help."""

    events: list[Event] = field(factory=list)

    @property
    def missing(self) -> tuple[str, ...]:
        """The instances that should hold the data key and do not."""
        return next((event.missing for event in self._outcomes()), ())

    @property
    def unverified(self) -> tuple[str, ...]:
        """The instances whose new wrap could not be proved."""
        return next((event.unverified for event in self._outcomes()), ())

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

    def _outcomes(self) -> Iterator[Event]:
        """How calls ended, the last one first: a rewrap that lost a race was tried again."""
        return (event for event in reversed(self.events) if event.operation in {"seal", "rewrap"})


@contextmanager
def connect(invocation: Invocation, *, needs_store: bool = False) -> Iterator[tuple[Kms, Witness]]:
    """The configured client; after success, ``--verbose`` tells which configuration that was.

    Raises ``InvalidRequest`` if a capsule store is needed and none is configured.
    """
    raw = configuration.find(invocation.config)
    settings = Settings.from_raw(raw)
    if needs_store and settings.envelope.capsules is None:
        raise InvalidRequest(
            f"{raw.source}: --compact needs a place for the capsule: set capsules in [envelope] "
            "to a folder, or to a file whose name ends in .sqlite"
        )
    with _client(settings) as both:
        yield both
    if invocation.verbose:
        say(f"configuration: {raw.source}")


@contextmanager
def connect_offline(
    private_key: Path, passphrase_variable: str | None
) -> Iterator[tuple[Kms, Witness]]:
    """A client that has one private key and nothing else; reads no configuration."""
    from kms_core.cli import passphrases
    from kms_core.offline import KeyFile

    file = KeyFile.read(private_key)
    asks = file.is_encrypted or passphrase_variable is not None
    passphrase = passphrases.given_or_asked_for(passphrase_variable) if asks else None
    path = private_key.absolute()
    options = {
        "key": file.pair(passphrase).wrapping.key_uri,
        "public_key": path,  # which to open is never read, as the URI above names the key
        "private_key": path,
        "passphrase": passphrase,
    }
    with _client(Settings({"identity": InstanceConfig("hpke", options)})) as both:
        yield both


@contextmanager
def _client(settings: Settings) -> Iterator[tuple[Kms, Witness]]:
    witness = Witness()
    with Kms(settings, observe=witness.events.append) as kms:
        yield kms, witness
