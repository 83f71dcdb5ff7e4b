"""``AsyncKms``: the same names as ``Kms``, awaitable.

Calls run on threads of this client's own, so the loop never waits for a service and the loop's
executor is never used up by one that hangs.  There is no loop in here: it works in whichever runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BufferedIOBase
from types import TracebackType
from typing import IO, Any, Final, Literal, ParamSpec, Self, TypeVar, overload

from kms_core.arguments import ContextLike, Data
from kms_core.breaker import BreakerSnapshot
from kms_core.cache import CacheInfo
from kms_core.calls import discard
from kms_core.client import Kms
from kms_core.context import Context
from kms_core.errors import InvalidRequest
from kms_core.header import DEFAULT_SEGMENT_LOG2
from kms_core.inspection import EnvelopeInfo
from kms_core.sessions import SealedMany
from kms_core.settings import Settings
from kms_core.stream import StreamWriter
from kms_core.types import (
    Ciphertext,
    DataKey,
    HealthReport,
    PluginInfo,
    PublicKey,
    Signature,
)
from kms_core.workers import Workers

P = ParamSpec("P")
T = TypeVar("T")
Path = str | os.PathLike[str]

MAX_THREADS: Final = 64


class _Services(Exception):
    """What is wanted cannot be had without asking services."""


class _AtHand(Kms):
    """The same client as far as it answers without asking anybody; else raises ``_Services``."""

    def __init__(self, kms: Kms) -> None:
        self.__dict__ = kms.__dict__

    def _seal(self, *_: object, **__: object) -> bytes:
        raise _Services

    def _open(self, *_: object) -> bytes:
        raise _Services


class AsyncKms:
    """Seals, opens and rewraps under all configured keys, for asyncio; see ``Kms``.

    Any number of tasks may use it at once.  What needs no service, because its data key is cached,
    is done at once; of the other calls ``max_threads`` are under way and the rest wait their turn.
    Cancelling a task gives its call up: one that had not begun never does, and what another still
    brings is wiped.
    """

    def __init__(
        self, settings: Settings | Kms, *, max_threads: int = MAX_THREADS, **options: Any
    ) -> None:
        """From settings, or over a ``Kms`` whose owner this becomes."""
        self._kms = settings if isinstance(settings, Kms) else Kms(settings, **options)
        self._at_hand = _AtHand(self._kms)
        self._workers = Workers("async", max_threads)

    @classmethod
    def from_config(cls, path: str | os.PathLike[str] | None = None, **options: Any) -> Self:
        """As ``Kms.from_config``; loads plugins, so call it before the loop is busy."""
        return cls(Kms.from_config(path, **options))

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """As ``Kms.from_env``."""
        return cls(Kms.from_env(**options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of every client and thread."""
        try:
            await self._run(self._kms.close)
        except InvalidRequest:
            return  # closed already
        self._workers.close()

    async def _run(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        future = self._workers.submit(partial(call, *args, **options))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(discard)
            raise

    @overload
    async def seal(
        self,
        data: Data,
        context: ContextLike = ...,
        *,
        stored_context: ContextLike = ...,
        inline: bool = ...,
        armor: Literal[False] = ...,
    ) -> bytes: ...

    @overload
    async def seal(
        self,
        data: Data,
        context: ContextLike = ...,
        *,
        stored_context: ContextLike = ...,
        inline: bool = ...,
        armor: Literal[True],
    ) -> str: ...

    async def seal(
        self,
        data: Any,
        context: ContextLike = None,
        stored_context: ContextLike = None,  # as in Kms
        inline: bool = True,  # noqa: FBT001, FBT002
        armor: bool = False,  # noqa: FBT001, FBT002
    ) -> bytes | str:
        """As ``Kms.seal``."""
        at_hand: Callable[..., bytes | str] = self._at_hand.seal
        call: Callable[..., bytes | str] = self._kms.seal
        try:
            return at_hand(data, context, stored_context, inline, armor)
        except _Services:
            pass  # so that it is no part of what may be raised now
        return await self._run(call, data, context, stored_context, inline, armor)

    async def open(self, sealed: Any, context: ContextLike = None) -> bytes:
        """As ``Kms.open``."""
        try:
            return self._at_hand.open(sealed, context)
        except _Services:
            pass
        return await self._run(self._kms.open, sealed, context)

    async def seal_many(
        self,
        values: Iterable[Data],
        context: ContextLike | list[ContextLike] = None,
        *,
        inline: bool = True,
    ) -> SealedMany:
        """As ``Kms.seal_many``; the values are taken on another thread."""
        return await self._run(self._kms.seal_many, values, context, inline=inline)

    async def open_many(
        self,
        sealed: SealedMany | Iterable[Data | str],
        context: ContextLike | list[ContextLike] = None,
    ) -> list[bytes]:
        """As ``Kms.open_many``."""
        return await self._run(self._kms.open_many, sealed, context)

    async def rewrap(
        self,
        sealed: Data | str,
        *,
        add: str | Sequence[str] = (),
        remove: str | Sequence[str] = (),
        repair: bool = True,
    ) -> bytes:
        """As ``Kms.rewrap``."""
        return await self._run(self._kms.rewrap, sealed, add=add, remove=remove, repair=repair)

    async def sealing(
        self,
        destination: IO[bytes],
        context: ContextLike = None,
        *,
        stored_context: ContextLike = None,
        inline: bool = True,
        segment_bytes: int = 1 << DEFAULT_SEGMENT_LOG2,
    ) -> StreamWriter:
        """As ``Kms.sealing``; the writer itself is an ordinary one."""
        return await self._run(
            self._kms.sealing,
            destination,
            context,
            stored_context=stored_context,
            inline=inline,
            segment_bytes=segment_bytes,
        )

    async def opening(self, source: IO[bytes], context: ContextLike = None) -> BufferedIOBase:
        """As ``Kms.opening``; the reader itself is an ordinary one."""
        return await self._run(self._kms.opening, source, context)

    async def seal_file(
        self,
        source: Path,
        destination: Path,
        context: ContextLike = None,
        *,
        stored_context: ContextLike = None,
        inline: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """As ``Kms.seal_file``."""
        await self._run(
            self._kms.seal_file,
            source,
            destination,
            context,
            stored_context=stored_context,
            inline=inline,
            progress=progress,
        )

    async def open_file(
        self,
        source: Path,
        destination: Path,
        context: ContextLike = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """As ``Kms.open_file``."""
        await self._run(self._kms.open_file, source, destination, context, progress=progress)

    async def rewrap_file(
        self,
        path: Path,
        *,
        add: str | Sequence[str] = (),
        remove: str | Sequence[str] = (),
        repair: bool = True,
    ) -> bool:
        """As ``Kms.rewrap_file``."""
        return await self._run(self._kms.rewrap_file, path, add=add, remove=remove, repair=repair)

    async def encrypt(
        self, data: Data, context: ContextLike = None, *, via: str | None = None
    ) -> Ciphertext:
        """As ``Kms.encrypt``."""
        return await self._run(self._kms.encrypt, data, context, via=via)

    async def decrypt(self, ciphertext: Ciphertext, context: ContextLike = None) -> bytes:
        """As ``Kms.decrypt``."""
        return await self._run(self._kms.decrypt, ciphertext, context)

    async def generate_data_key(
        self, context: ContextLike = None, *, via: str | None = None
    ) -> DataKey:
        """As ``Kms.generate_data_key``."""
        return await self._run(self._kms.generate_data_key, context, via=via)

    async def sign(
        self, data: Data, *, algorithm: str | None = None, via: str | None = None
    ) -> Signature:
        """As ``Kms.sign``."""
        return await self._run(self._kms.sign, data, algorithm=algorithm, via=via)

    async def verify(self, data: Data, signature: Signature, *, via: str | None = None) -> bool:
        """As ``Kms.verify``."""
        return await self._run(self._kms.verify, data, signature, via=via)

    async def public_key(self, *, via: str | None = None) -> PublicKey:
        """As ``Kms.public_key``."""
        return await self._run(self._kms.public_key, via=via)

    async def health(self, *, deep: bool = False) -> HealthReport:
        """As ``Kms.health``."""
        return await self._run(self._kms.health, deep=deep)

    async def warm_up(self) -> HealthReport:
        """As ``Kms.warm_up``."""
        return await self._run(self._kms.warm_up)

    async def forget(
        self, which: ContextLike | str | bytes = None, *, key_id: str | bytes | None = None
    ) -> int:
        """As ``Kms.forget``."""
        return await self._run(self._kms.forget, which, key_id=key_id)

    def cache_info(self) -> CacheInfo:
        """As ``Kms.cache_info``: nothing to wait for."""
        return self._kms.cache_info()

    def force_breaker(self, name: str, state: Literal["closed", "open"] | None) -> None:
        """As ``Kms.force_breaker``: nothing to wait for."""
        self._kms.force_breaker(name, state)

    @staticmethod
    def context(pairs: Mapping[str, str]) -> Context:
        """As ``Kms.context``: nothing to wait for."""
        return Kms.context(pairs)

    @staticmethod
    def inspect(sealed: Data | str) -> EnvelopeInfo:
        """As ``Kms.inspect``: nothing to wait for."""
        return Kms.inspect(sealed)

    @staticmethod
    def is_sealed(data: Data | str) -> bool:
        """As ``Kms.is_sealed``: nothing to wait for."""
        return Kms.is_sealed(data)

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """As ``Kms.plugins``."""
        return self._kms.plugins

    @property
    def breakers(self) -> dict[str, BreakerSnapshot]:
        """As ``Kms.breakers``."""
        return self._kms.breakers
