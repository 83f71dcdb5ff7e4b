"""What one call costs in each of the library's layers, whole files, and many values at once.

Where the public interface does not reach (a hook, a breaker) the layer is called as the core calls
it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pluggy

from benchmarks import raw
from benchmarks.peer import CONTEXT, Call, Duel, MakeDuel, Service
from kms_core import (
    AllInstancesFailed,
    BreakerPolicy,
    CachePolicy,
    Context,
    Duration,
    InstanceConfig,
    Kms,
    Settings,
    hookimpl,
)
from kms_core.breaker import Breaker
from kms_core.hookspecs import PROJECT, ProviderSpec
from kms_core.plugins import Found
from kms_core.testing import MemoryProvider, MemorySettings, MemoryStore, memory
from kms_core.types import InstanceInfo
from kms_local import KeyStore

_KEY: Final = "default"
_VALUE_BYTES: Final = 32
_PIECE: Final = 1 << 20
_INFO: Final = InstanceInfo("store", "memory", "software")
_MEMORY: Final = Found("memory", "kms-core", "", 1, lambda: memory)
_NO_CACHE: Final = CachePolicy(max_age=Duration(0.0))


def _client(*names: str, store: MemoryStore) -> Kms:
    """Instances by these names on one store, asked for every message."""
    instance = InstanceConfig("memory", {"store": store})
    return Kms(Settings(dict.fromkeys(names, instance), cache=_NO_CACHE), plugins=[_MEMORY])


# --- layers --------------------------------------------------------------------------------------


class _Wrapper:
    """What a plugin that guards calls looks like, doing nothing."""

    @hookimpl(wrapper=True)
    def encrypt(self) -> Any:
        return (yield)


def _hook(*wrappers: object) -> MakeDuel:
    def make(_: Mapping[str, Any]) -> Duel:
        provider = MemoryProvider(MemorySettings(_KEY))
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(ProviderSpec)
        for plugin in (provider, *wrappers):
            manager.register(plugin)
        arguments: dict[str, Any] = {
            "key_id": _KEY,
            "plaintext": bytes(32),
            "context": Context(CONTEXT),
        }
        hook = partial(manager.hook.encrypt, instance=_INFO, **arguments)
        return Duel(partial(provider.encrypt, **arguments), hook)

    return make


def _whole(operation: str) -> MakeDuel:
    """A seal or open that asks its service, beside the provider's part of it."""

    def make(_: Mapping[str, Any]) -> Duel:
        store, context = MemoryStore(), Context(CONTEXT)
        provider, kms = MemoryProvider(MemorySettings(_KEY, store)), _client("a", store=store)
        if operation == "seal":
            base = partial(provider.encrypt, _KEY, bytes(32), context)
            return Duel(base, partial(kms.seal, bytes(256), context))
        wrap = provider.encrypt(_KEY, bytes(32), context)
        sealed = kms.seal(bytes(256), context)
        return Duel(
            partial(provider.decrypt, _KEY, wrap, context), partial(kms.open, sealed, context)
        )

    return make


def _breaker(_: Mapping[str, Any]) -> Duel:
    breaker = Breaker(BreakerPolicy(), time.monotonic)

    def pass_through() -> None:
        breaker.succeed(breaker.acquire(), 0.001)

    return Duel(_nothing, pass_through)


def _nothing() -> None:
    """The cost of a call."""


# --- passing over an open breaker ----------------------------------------------------------------


def _passing_over(operation: str) -> MakeDuel:
    """With another instance in front whose breaker is open, beside having one instance only."""

    def make(_: Mapping[str, Any]) -> Duel:
        store = MemoryStore()
        alone, passing = _client("b", store=store), _client("a", "b", store=store)
        passing.force_breaker("a", "open")
        sealed = alone.seal(bytes(256))
        calls: dict[str, Callable[[Kms], Call]] = {
            "seal": lambda kms: partial(kms.seal, bytes(256)),
            "open": lambda kms: partial(kms.open, sealed),
        }
        return Duel(calls[operation](alone), calls[operation](passing))

    return make


def _refused(_: Mapping[str, Any]) -> Duel:
    """Every breaker open: a call that fails, beside one that succeeds."""
    store = MemoryStore()
    well, down = _client("a", store=store), _client("a", store=store)
    sealed = well.seal(bytes(256))
    down.force_breaker("a", "open")

    def refused() -> None:
        try:
            down.open(sealed)
        except AllInstancesFailed:
            return
        raise ValueError("somebody answered")

    return Duel(partial(well.open, sealed), refused)


# --- many values ---------------------------------------------------------------------------------


def _values(given: Mapping[str, Any]) -> list[bytes]:
    random = os.urandom(_VALUE_BYTES * given["values"])
    return [random[start : start + _VALUE_BYTES] for start in range(0, len(random), _VALUE_BYTES)]


def _seal_many(given: Mapping[str, Any]) -> Duel:
    values, kms = _values(given), _client("a", store=MemoryStore())
    context = kms.context(CONTEXT)
    return Duel(
        raw.sealing_many(values), partial(kms.seal_many, values, context), units=len(values)
    )


def _open_many(given: Mapping[str, Any]) -> Duel:
    values, kms = _values(given), _client("a", store=MemoryStore())
    context = kms.context(CONTEXT)
    sealed = kms.seal_many(values, context)
    return Duel(
        raw.opening_many(values), partial(kms.open_many, sealed, context), units=len(values)
    )


# --- three services at once ----------------------------------------------------------------------


def _three_raw_calls(given: Mapping[str, Any]) -> Duel:
    """What can be had without a library: three SDK calls in a pool of threads."""
    services = [Service(**each) for each in given["services"]]
    calls = [raw.wrapping([service]) for service in services]
    pool = ThreadPoolExecutor(len(calls))

    def at_once() -> None:
        for future in [pool.submit(call) for call in calls]:
            future.result()

    return Duel(raw.wrapping(services), at_once)


# --- files ---------------------------------------------------------------------------------------


class _Files:
    """A file to seal and its copies.  Every duel's second side replaces what its first one made."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        folder = Path(given["folder"])
        self.mebibytes: Final = int(given["mebibytes"])
        self.plain, self.sealed, self.made = (folder / name for name in ("plain", "sealed", "made"))
        self.synced = bool(given["synced"])
        keys = folder / "keys"
        if not keys.exists():
            KeyStore.create(keys)
        self.kms = Kms(Settings({"local": InstanceConfig("local", {"path": keys})}))
        if not self.plain.exists():
            self.plain.write_bytes(os.urandom(1 << 20) * self.mebibytes)
        if not self.sealed.exists():
            self.kms.seal_file(self.plain, self.sealed, CONTEXT)

    def duel(self, base: Call, subject: Call) -> Duel:
        """Without ``synced`` nobody waits for the disk, which is not what is measured."""
        return Duel(self._as_told(base), self._as_told(subject), self.mebibytes, self.clear)

    def clear(self) -> None:
        """Replacing a file would be charged with freeing the old one's pages."""
        self.made.unlink(missing_ok=True)

    def copy(self) -> None:
        """The plain copy loop."""
        raw.copying(str(self.plain), str(self.made))

    def seal_on_one_thread(self) -> None:
        """A stream from file to file."""
        buffer = bytearray(_PIECE)
        view = memoryview(buffer)
        with (
            self.plain.open("rb", buffering=0) as source,
            self.made.open("wb", buffering=0) as sink,
        ):
            with self.kms.sealing(sink, CONTEXT) as writer:
                while size := source.readinto(buffer):
                    writer.write(view[:size])
            os.fsync(sink.fileno())

    def open_on_one_thread(self) -> None:
        """The same backwards."""
        buffer = bytearray(_PIECE)
        view = memoryview(buffer)
        with (
            self.sealed.open("rb", buffering=0) as source,
            self.made.open("wb", buffering=0) as sink,
        ):
            with self.kms.opening(source, CONTEXT) as reader:
                while size := reader.readinto(buffer):
                    raw.write_all(sink, view[:size])
            os.fsync(sink.fileno())

    def seal(self) -> None:
        """With as many threads as the library takes."""
        self.kms.seal_file(self.plain, self.made, CONTEXT)

    def open(self) -> None:
        """The same backwards."""
        self.kms.open_file(self.sealed, self.made, CONTEXT)

    def _as_told(self, call: Call) -> Call:
        if self.synced:
            return call

        def without_waiting() -> None:
            with mock.patch("os.fsync", return_value=None):
                call()

        return without_waiting


def _file(subject: Callable[[_Files], Call], base: Callable[[_Files], Call]) -> MakeDuel:
    def make(given: Mapping[str, Any]) -> Duel:
        files = _Files(given)
        return files.duel(base(files), subject(files))

    return make


DUELS: Final[Mapping[str, Mapping[str, MakeDuel]]] = {
    "layer": {
        "hook, one implementation": _hook(),
        "hook, one wrapper": _hook(_Wrapper()),
        "hook, two wrappers": _hook(_Wrapper(), _Wrapper()),
        "seal without a cache": _whole("seal"),
        "open without a cache": _whole("open"),
    },
    "breaker": {"acquire and succeed": _breaker},
    "passing over": {
        "seal, another one's breaker open": _passing_over("seal"),
        "open, another one's breaker open": _passing_over("open"),
        "open refused, all breakers open": _refused,
    },
    "seal many": {"kms_core, seal_many": _seal_many},
    "open many": {"kms_core, open_many": _open_many},
    "cold 3": {"boto3, three calls at once": _three_raw_calls},
    "file, beside a copy": {
        "sealing, one thread": _file(lambda files: files.seal_on_one_thread, lambda f: f.copy),
        "opening, one thread": _file(lambda files: files.open_on_one_thread, lambda f: f.copy),
        "seal_file": _file(lambda files: files.seal, lambda f: f.copy),
        "open_file": _file(lambda files: files.open, lambda f: f.copy),
    },
    "file, beside one thread": {
        "seal_file": _file(lambda files: files.seal, lambda f: f.seal_on_one_thread),
        "open_file": _file(lambda files: files.open, lambda f: f.open_on_one_thread),
    },
}
