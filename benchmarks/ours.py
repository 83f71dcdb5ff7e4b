"""Our library as a subject, through its public interface; the key services are in memory.

``kms_core.testing.memory`` is a plugin like any other: what it does under its key is one AES-GCM
call, so what is measured of a call that asks it is the library's own work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, Any, Final

from benchmarks import inside
from benchmarks.peer import CONTEXT, Call, Herd, Service, Streams, Variant, Vault
from benchmarks.plan import COMPACT, INLINE, PLAIN_DICT
from kms_core import CachePolicy, Duration, InstanceConfig, Kms, MemoryCapsules, Secret, Settings
from kms_core.plugins import Found
from kms_core.testing import Failure, MemoryStore, memory

NAME = "kms_core"
REQUIREMENTS = ("kms-core",)
_NO_REFRESH: Final = CachePolicy(refresh_ahead=0.0)
_PIECE: Final = 1 << 20
_MEMORY: Final = Found("memory", "kms-core", "", 1, lambda: memory)


class Shifted:
    """Real time, and more of it when that is asked for."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return time.monotonic() + self._ahead

    def skip(self, seconds: float) -> None:
        """So much later."""
        self._ahead += seconds


def client(
    *stores: MemoryStore,
    cache: CachePolicy | None = None,
    clock: Callable[[], float] | None = None,
) -> Kms:
    """A client with one recipient for each of the stores."""
    instances = {
        f"store-{number}": InstanceConfig("memory", {"store": store})
        for number, store in enumerate(stores, 1)
    }
    settings = Settings(instances, cache=cache or CachePolicy())
    return Kms(settings, capsules=MemoryCapsules(), plugins=[_MEMORY], clock=clock)


def _cached(*, inline: bool, reusable: bool) -> Vault:
    kms = client(MemoryStore())
    context = kms.context(CONTEXT) if reusable else CONTEXT
    seal: Any = kms.seal  # called by position: a keyword in a partial costs half an encryption
    return Vault(
        sealing=lambda data: partial(seal, data, context, None, inline),
        opening=lambda sealed: partial(kms.open, sealed, context),
    )


def _streams() -> Streams:
    kms = client(MemoryStore())
    buffer = bytearray(1 << 18)  # a segment

    def seal(plain: memoryview, sink: IO[bytes]) -> None:
        with kms.sealing(sink, CONTEXT) as writer:
            for start in range(0, len(plain), _PIECE):
                writer.write(plain[start : start + _PIECE])

    def open_(source: IO[bytes]) -> None:
        with kms.opening(source, CONTEXT) as reader:
            while reader.readinto(buffer):
                pass

    return Streams(seal, open_)


def _cold(services: Sequence[Service]) -> Call:
    instances = {
        f"region-{number}": InstanceConfig("aws-kms", _options(service))
        for number, service in enumerate(services, 1)
    }
    kms = Kms(Settings(instances, cache=CachePolicy(max_age=Duration(0.0))))
    kms.warm_up()
    return partial(kms.seal, bytes(256), kms.context(CONTEXT))


def _options(service: Service) -> dict[str, Any]:
    return {
        "key": service.key,
        "endpoint_url": service.url,
        "insecure": True,
        "access_key_id": Secret(service.access_key_id),
        "secret_access_key": Secret(service.secret_access_key),
    }


class _Crowded:
    """Two recipients whose services take ``delay`` seconds."""

    def __init__(self, delay: float) -> None:
        self._stores = MemoryStore(), MemoryStore()
        self.clock = Shifted()
        self.kms = client(*self._stores, cache=_NO_REFRESH, clock=self.clock)
        self.kms.warm_up()
        for store in self._stores:
            store.panel.fail(Failure.SLOW, seconds=delay)

    def asked(self) -> int:
        """Requests so far, of both services."""
        return sum(store.panel.count() for store in self._stores)


def _sealing_herd(delay: float, *, expired: bool) -> Herd:
    crowded = _Crowded(delay)
    if expired:
        crowded.kms.seal(b"", CONTEXT)
        crowded.clock.skip(_NO_REFRESH.max_age + 1)
    return Herd(partial(crowded.kms.seal, bytes(256), CONTEXT), crowded.asked)


def _opening_herd(delay: float) -> Herd:
    crowded = _Crowded(delay)
    sealed = crowded.kms.seal(bytes(256), CONTEXT)
    crowded.kms.forget()
    return Herd(partial(crowded.kms.open, sealed, CONTEXT), crowded.asked)


VARIANTS = (
    Variant(
        COMPACT,
        "data key cached, capsule kept apart, reusable context",
        envelope=True,
        cached=partial(_cached, inline=False, reusable=True),
    ),
    Variant(
        INLINE,
        "data key cached, capsule in every message, reusable context",
        envelope=True,
        cached=partial(_cached, inline=True, reusable=True),
        streams=_streams,
        cold=_cold,
        herd={
            "seal, cold": partial(_sealing_herd, expired=False),
            "seal, expired": partial(_sealing_herd, expired=True),
            "open, cold": _opening_herd,
        },
    ),
    Variant(
        PLAIN_DICT,
        "the same with a dict of two entries for every call",
        envelope=True,
        cached=partial(_cached, inline=True, reusable=False),
    ),
)

DUELS = inside.DUELS
