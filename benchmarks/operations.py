"""The duels that a subject's variants can be put to, each beside the raw calls of its kind.

Runs in the subject's environment.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import IO, Any, cast

from benchmarks import raw
from benchmarks.peer import Call, Duel, MakeDuel, Service, Streams, Variant, Vault

#: By operation and by the name of who offers it.
Offers = dict[str, dict[str, MakeDuel]]


def offers_of(subject: ModuleType) -> Offers:
    """Everything that a subject's module can be asked for."""
    offers: Offers = {operation: dict(makers) for operation, makers in _extra(subject).items()}
    for variant in cast("Iterable[Variant]", subject.VARIANTS):
        for operation, make in _operations(variant).items():
            offers.setdefault(operation, {})[variant.name] = make
    return offers


def _extra(subject: ModuleType) -> Mapping[str, Mapping[str, MakeDuel]]:
    extra: Mapping[str, Mapping[str, MakeDuel]] = getattr(subject, "DUELS", {})
    return extra


def _operations(variant: Variant) -> Mapping[str, MakeDuel]:
    operations: dict[str, MakeDuel] = {}
    if variant.cached is not None:
        vault = _once(variant.cached)
        operations["seal"] = lambda given: _sealing(vault(), given["bytes"])
        operations["open"] = lambda given: _opening(vault(), given["bytes"])
    if variant.streams is not None:
        streams = _once(variant.streams)
        operations["stream seal"] = lambda given: _stream_sealing(streams(), given["mebibytes"])
        operations["stream open"] = lambda given: _stream_opening(streams(), given["mebibytes"])
    if variant.cold is not None:
        for count in range(1, variant.most_services + 1):
            operations[f"cold {count}"] = partial(_cold, variant.cold, count)
    return operations


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get


def _sealing(vault: Vault, size: int) -> Duel:
    data = os.urandom(size)
    return Duel(raw.sealing(data), vault.sealing(data))


def _opening(vault: Vault, size: int) -> Duel:
    data = os.urandom(size)
    call = vault.opening(vault.sealing(data)())
    if call() != data:
        raise ValueError("what was opened is not what was sealed")
    return Duel(raw.opening(data), call)


def _cold(make: Callable[[list[Service]], Call], count: int, given: Mapping[str, Any]) -> Duel:
    services = [Service(**each) for each in given["services"][:count]]
    return Duel(raw.wrapping(services), make(services))


class _Sink(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return len(data)


class _Kept(io.BytesIO):
    """Stays open when a library closes what it was given."""

    def close(self) -> None:
        """For the next reader."""
        self.seek(0)


def _stream_sealing(streams: Streams, mebibytes: int) -> Duel:
    size = min(mebibytes, streams.mebibytes or mebibytes)
    segments = raw.Segments(size)
    return Duel(
        segments.seal, lambda: streams.seal(segments.plain, cast("IO[bytes]", _Sink())), units=size
    )


def _stream_opening(streams: Streams, mebibytes: int) -> Duel:
    size = min(mebibytes, streams.mebibytes or mebibytes)
    segments, sealed = raw.Segments(size), _Kept()
    streams.seal(segments.plain, sealed)

    def open_() -> None:
        sealed.seek(0)
        streams.open(sealed)

    return Duel(segments.open, open_, units=size)
