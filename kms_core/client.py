"""``Kms``: the object applications hold."""

from __future__ import annotations

import io
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import IO, Any, Final, Literal, Self, TypeVar, overload

import attrs
from cryptography.exceptions import InvalidTag

from kms_core import arguments, config, envelope, header, health, inspection, parallel
from kms_core import rewrap as rewrapping
from kms_core.arguments import ContextLike, Data
from kms_core.assembly import Assembly
from kms_core.breaker import BreakerSnapshot
from kms_core.cache import CacheInfo, Sweeper, since_boot
from kms_core.capsules import CapsuleStore
from kms_core.context import Context
from kms_core.direct import Direct
from kms_core.errors import (
    InvalidRequest,
    KMSError,
)
from kms_core.files import NewFile
from kms_core.header import MESSAGE_HEADER_BYTES, SUBKEY_PREFIX_BYTES
from kms_core.memory import Arena
from kms_core.monitor import Monitor
from kms_core.opening import OpenedKeys
from kms_core.plugins import Found, Plugins
from kms_core.relay import Relay
from kms_core.sealing import SealingKey, SealingKeys
from kms_core.sessions import (
    SHORT,
    SMALL,
    SealedMany,
    Session,
    flat,
    open_all,
    seal_all,
    without_copy,
)
from kms_core.settings import Settings
from kms_core.stored import StoredCapsules
from kms_core.stream import StreamWriter, write_all
from kms_core.types import (
    Event,
    Health,
    HealthReport,
    PluginInfo,
)
from kms_core.unwrapping import Unwrapper
from kms_core.workers import Workers
from kms_core.wrapping import Wrapper

T = TypeVar("T")
RECENT_CONTEXTS: Final = 256  # given as plain dicts, and kept encoded
REFRESH_THREADS: Final = 4  # data keys that are replaced in the background at once
#: What the hot paths run into where there is more to do: no key at hand, one that was dropped or is
#: used up, or input of an unusual kind.  The whole method then judges, from the start.
_NOT_AT_HAND: Final = (
    *(AttributeError, BufferError, IndexError, KeyError, StopIteration, TypeError, ValueError),
    *(InvalidTag, NotImplementedError),  # the latter for views of several dimensions
)


class Kms(Direct):
    """Seals, opens and rewraps under all configured keys.  Thread-safe; ``close`` when done.

    Every method that asks a service returns or raises within ``[calls] deadline``.  Errors are
    those of ``kms_core.errors``; none of them carries plaintext or key material.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        capsules: CapsuleStore | None = None,
        observe: Callable[[Event], None] | None = None,
        plugins: Iterable[Found] | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Load what the settings name; raises ``ConfigError`` or ``PluginError``, asks no service.

        ``capsules`` keeps the capsules of compact messages (default: ``envelope.capsules``).
        ``observe`` is told every event, as the observers of plugins are; ``plugins``, ``clock`` and
        ``sleep`` are for tests.
        """
        self._settings = settings
        self._plugins = Plugins(plugins)
        self._clock = clock or time.monotonic
        self._since_boot = clock or since_boot
        self._closed = False
        watchers = () if observe is None else (observe,)
        self._assemble = partial(
            Assembly, settings, self._plugins, watchers, clock=self._clock, sleep=sleep
        )
        self._parents: list[Assembly] = []
        self._no_context = Context()
        self._recent: dict[tuple[tuple[str, str], ...], Context] = {}
        self._key_context = settings.envelope.key_context
        self._start()
        self._stored = (
            StoredCapsules.at(settings.envelope.capsules)
            if capsules is None
            else StoredCapsules(capsules)
        )
        if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
            # Cannot be undone: what stays behind for good is one dead weak reference.
            os.register_at_fork(after_in_child=partial(_start_in_child, weakref.ref(self)))

    def _start(self) -> None:
        """Build everything that holds locks, threads or connections."""
        self._assembly = self._assemble()
        self._router = self._assembly.router
        self._quorum = self._assembly.quorum
        self._emit = self._assembly.emit
        self._arena = Arena()
        self._wrap = Wrapper(self._settings, self._router, self._quorum, self._arena, self._clock)
        policy = self._settings.envelope
        self._unwrap = Unwrapper(
            self._router,
            min_threshold=policy.min_threshold,
            allow_public_key_wraps=policy.allow_public_key_wraps,
            clock=self._clock,
        )
        check = partial(self.health, deep=self._settings.monitor.deep)
        self._monitor = Monitor(
            self._settings.monitor,
            self._router.relays,
            check,
            self._check_deeply,
            self._emit,
            patience=self._settings.calls.attempt_timeout,
        )
        self._monitor.start()
        self._start_cache()

    def _start_cache(self) -> None:
        """Keep data keys from now on, starting with none."""
        policy = self._settings.cache
        self._background = Workers("cache", REFRESH_THREADS)
        self._sweeper = Sweeper(self._drop_expired, self._forget, self._clock, self._since_boot)
        self._sealing = SealingKeys(
            policy,
            self._wrap,
            clock=self._clock,
            submit=self._background.submit,
            are_back=self._are_back,
            tell=lambda operation, outcome, missing: self._emit(
                Event(operation, outcome, missing=missing)
            ),
            kept=self._sweeper.begin,
        )
        self._sessions = self._sealing.sessions
        self._opened = OpenedKeys(policy, self._clock, self._sweeper.begin)
        self._openers = self._opened.openers

    def _disown_keys(self) -> None:
        """Drop them in a child, where locks may be held and a key for sealing is the parent's."""
        for session in self._sessions.values():
            session.retire()
        for opener in self._openers.values():
            opener.retire()

    def _drop_expired(self) -> float:
        return min(self._sealing.drop_expired(), self._opened.drop_expired())

    def _are_back(self, names: Iterable[str]) -> bool:
        return all(self._router.relays[name].breaker.state != "open" for name in names)

    @classmethod
    def from_config(cls, path: str | os.PathLike[str] | None = None, **options: Any) -> Self:
        """From a TOML file; without a path, ``$KMS_CONFIG``, the user's file or the environment."""
        raw = config.find() if path is None else config.load(path)
        return cls(Settings.from_raw(raw), **options)

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """From the services' own environment variables alone."""
        return cls(Settings.from_raw(config.from_environment()), **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every client and thread.  Idempotent; no call works afterwards."""
        if not self._closed:
            self._closed = True
            self._monitor.stop()
            self._sweeper.stop()
            self._background.close()
            self._forget()
            self._arena.close()
            self._assembly.close()
            self._stored.close()

    # --- envelopes -------------------------------------------------------------------------------

    @staticmethod
    def context(pairs: Mapping[str, str]) -> Context:
        """A context encoded once, for repeated use; raises ``InvalidRequest``."""
        return arguments.context(pairs)

    @overload
    def seal(
        self,
        data: Data,
        context: ContextLike = ...,
        *,
        stored_context: ContextLike = ...,
        inline: bool = ...,
        armor: Literal[False] = ...,
    ) -> bytes: ...

    @overload
    def seal(
        self,
        data: Data,
        context: ContextLike = ...,
        *,
        stored_context: ContextLike = ...,
        inline: bool = ...,
        armor: Literal[True],
    ) -> str: ...

    def seal(
        self,
        data: Any,
        context: ContextLike = None,
        stored_context: ContextLike = None,  # keyword-only above: here that would cost every call
        inline: bool = True,  # noqa: FBT001, FBT002
        armor: bool = False,  # noqa: FBT001, FBT002
    ) -> bytes | str:
        """Encrypt up to 64 MiB under a data key that every recipient holds.

        ``context`` is authenticated and must be given again to open; ``stored_context`` is
        authenticated and travels in clear inside.  A data key is used as long as ``[cache]`` says,
        so most calls ask no service.  Recipients that cannot be reached are left out once
        ``min_recipients`` hold the key, and recorded as missing.  ``inline=False`` puts the capsule
        into the capsule store and returns a compact message that only names its key.  ``armor``
        returns base64url text.  Raises ``AllInstancesFailed`` if too few recipients can be reached.
        """
        try:
            bound = context if type(context) is Context else self._bound(context)
            session: Session = bound.session
            if (
                session.owner is self._sealing
                and self._clock() < session.expires
                and stored_context is None
                and not armor
            ):
                front: bytes = session.inline if inline else session.compact
                if type(data) is not bytes:
                    data = flat(data)
                if len(data) > SMALL:
                    return session.seal_large(front, data, bound.encoded)
                iv = next(session.ivs)
                return front + iv + session.encrypt(iv, data, bound._encoded)  # noqa: SLF001
        except _NOT_AT_HAND:
            pass
        sealed = self._seal(data, context, stored_context, inline=inline)
        return inspection.armor(sealed) if armor else sealed

    def _seal(
        self, data: Data, context: ContextLike, stored_context: ContextLike, *, inline: bool
    ) -> bytes:
        with self._told("seal") as outcome:
            plaintext = arguments.data(data)
            envelope.check_size(plaintext)
            supplied, stored = self._kept(context), arguments.optional_context(stored_context)
            key = self._sealing_key(supplied, stored, size=len(plaintext))
            outcome.missing = key.missing
            message = envelope.seal_message(key.keys, plaintext, supplied, stored)
            sealed = self._capsule_in_front(key, inline=inline) + message
            session = self._sealing.keep_session(key)
            if supplied.includes(key.keys.scope):  # not if the stored context has a part of it
                supplied.session = session
        return sealed

    def _bound(self, pairs: ContextLike) -> Context:
        """A context that knows what to seal with, if that is known."""
        context = self._kept(pairs)
        names = self._key_context
        context.session = self._sessions.get(tuple([context[name] for name in names]))
        return context

    def _kept(self, pairs: ContextLike) -> Context:
        """The context for these pairs, encoded once if they came lately."""
        if pairs is None:
            return self._no_context
        if type(pairs) is not dict:
            return arguments.context(pairs)
        items = tuple(pairs.items())
        try:
            known = self._recent.get(items)
        except TypeError:  # not even hashable
            return arguments.context(pairs)
        if known is None:
            known = arguments.context(pairs)
            if len(self._recent) >= RECENT_CONTEXTS:
                self._recent.clear()
            self._recent[items] = known
        return known

    def seal_many(
        self,
        values: Iterable[Data],
        context: ContextLike | list[ContextLike] = None,
        *,
        inline: bool = True,
    ) -> SealedMany:
        """Encrypt many values, say of a column, under one data key.

        ``context``: one for all values, or a list with one for each; entries that
        ``[envelope] key_context`` names must be the same in all.  Returns the messages, each
        compact, beside the one capsule that opens them; with ``inline=False`` that is in the
        capsule store.  Raises ``InvalidRequest`` naming the first value that is not bytes.
        """
        with self._told("seal") as outcome:
            batch = arguments.batch(values)
            contexts = arguments.contexts(context, len(batch))
            supplied = contexts[0] if contexts else arguments.common_context(context)
            key = self._sealing_key(supplied, None, len(batch), sum(map(len, batch)))
            if not all(each.includes(key.keys.scope) for each in contexts):
                raise InvalidRequest(
                    "the contexts differ in an entry that envelope.key_context names: "
                    "seal each group of values by itself"
                )
            outcome.missing = key.missing
            capsule = self._capsule_in_front(key, inline=inline)
            aads = (each.encoded for each in contexts) if contexts else repeat(supplied.encoded)
            return SealedMany(capsule, list(seal_all(key.keys, batch, aads)))

    def open_many(
        self,
        sealed: SealedMany | Iterable[Data | str],
        context: ContextLike | list[ContextLike] = None,
    ) -> list[bytes]:
        """Decrypt what ``seal_many`` made, or any envelopes, with the same context or contexts.

        All or nothing: raises what ``open`` raises for one of them, its number in a note.
        """
        opened: list[bytes] = []
        try:
            if isinstance(sealed, SealedMany) and sealed.capsule:
                opened.extend(self._opening_many(sealed, context))
            else:
                each = sealed.messages if isinstance(sealed, SealedMany) else list(sealed)
                contexts = arguments.contexts(context, len(each)) or repeat(
                    arguments.common_context(context)
                )
                opened.extend(map(self.open, each, contexts))
        except KMSError as exc:
            exc.add_note(f"at value {len(opened)} of those given to open_many()")
            raise
        return opened

    def _opening_many(
        self, sealed: SealedMany, context: ContextLike | list[ContextLike]
    ) -> Iterator[bytes]:
        messages = map(arguments.data, sealed.messages)
        contexts = arguments.contexts(context, len(sealed.messages))
        supplied = contexts or [arguments.common_context(context)]
        with self._told("open"):
            keys = envelope.keys_for_many(sealed.capsule, supplied, self._unwrap, self._opened)
            aads = (each.encoded for each in contexts) if contexts else repeat(supplied[0].encoded)
            yield from open_all(keys, messages, aads)

    def sealing(
        self,
        destination: IO[bytes],
        context: ContextLike = None,
        *,
        stored_context: ContextLike = None,
        inline: bool = True,
        segment_bytes: int = 1 << header.DEFAULT_SEGMENT_LOG2,
    ) -> StreamWriter:
        """A writer that encrypts into ``destination`` in bounded memory; use it with ``with``.

        Leaving ``with`` normally ends the stream; through an exception it stays without an end and
        does not open.  ``segment_bytes`` is a power of two, 4 KiB to 4 MiB.  Errors as ``seal``.
        """
        with self._told("seal") as outcome:
            supplied, stored = (
                arguments.context(context),
                arguments.optional_context(stored_context),
            )
            log2 = arguments.segment_log2(segment_bytes)
            key = self._sealing_key(supplied, stored)
            outcome.missing = key.missing
            write_all(destination, memoryview(self._capsule_in_front(key, inline=inline)))
            return envelope.start_stream(destination, key.keys, supplied, stored, segment_log2=log2)

    def opening(self, source: IO[bytes], context: ContextLike = None) -> io.BufferedIOBase:
        """A reader of the plaintext, in bounded memory; seekable where ``source`` is.

        ``source`` stands at the start of an envelope of any form.  No byte comes out before its
        segment is authenticated; treat what came out as provisional until the end is reached.  A
        seek authenticates the length first.  Errors as for ``open``.
        """
        with self._told("open"):
            return self._reader(source, context)

    def seal_file(
        self,
        source: str | os.PathLike[str],
        destination: str | os.PathLike[str],
        context: ContextLike = None,
        *,
        stored_context: ContextLike = None,
        inline: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Encrypt a file; ``destination`` appears whole or not at all.

        ``progress`` is told how many bytes of plaintext were done since it was last told.
        """
        with (
            self._told("seal") as outcome,
            open(source, "rb", buffering=0) as plain,  # noqa: PTH123
            NewFile(destination) as sealed,
        ):
            supplied, stored = (
                arguments.context(context),
                arguments.optional_context(stored_context),
            )
            key = self._sealing_key(supplied, stored)
            outcome.missing = key.missing
            capsule = self._capsule_in_front(key, inline=inline)
            head, stream_key, stream = envelope.stream_head(
                key.keys, supplied, stored, header.DEFAULT_SEGMENT_LOG2
            )
            write_all(sealed.stream, memoryview(capsule + head))
            parallel.seal(plain, sealed.stream, stream_key, stream.segment_bytes, progress)

    def open_file(
        self,
        source: str | os.PathLike[str],
        destination: str | os.PathLike[str],
        context: ContextLike = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Decrypt a file of any form; ``destination`` (mode 0600) appears whole or not at all."""
        with (
            self._told("open"),
            open(source, "rb", buffering=0) as sealed,  # noqa: PTH123
            self._reader(sealed, context) as reader,
            NewFile(destination, mode=0o600) as plain,
        ):
            parallel.open_(reader, plain.stream, progress)

    @overload
    def open(self, sealed: Data, context: ContextLike = ...) -> bytes: ...

    @overload
    def open(self, sealed: str, context: ContextLike = ...) -> bytes: ...

    def open(self, sealed: Any, context: ContextLike = None) -> bytes:
        """Decrypt what ``seal`` made, with the same context.

        Raises ``FormatError`` for bytes that are no envelope, ``IntegrityError`` for anything
        altered, foreign or with another context, and ``AllInstancesFailed`` if no recipient could
        be asked.
        """
        try:
            bound = context if type(context) is Context else self._bound(context)
            opener = self._openers.get(sealed[:SUBKEY_PREFIX_BYTES])
            if opener is None or len(sealed) > SHORT:
                return self._open_at_hand(sealed, bound)
            scope, now = opener.scope, self._clock()
            if now < opener.expires and (
                scope is None or scope is bound.proved or bound.proves(scope)
            ):
                opener.used = now
                opener.hits += 1
                iv = sealed[SUBKEY_PREFIX_BYTES:MESSAGE_HEADER_BYTES]
                return opener.decrypt(iv, sealed[MESSAGE_HEADER_BYTES:], bound._encoded)  # noqa: SLF001
        except _NOT_AT_HAND:
            pass
        return self._open(sealed, context)

    def _open_at_hand(self, sealed: bytes, bound: Context) -> bytes:
        """The same for a message with its capsule in front, or a large one."""
        start = int.from_bytes(sealed[4:8], "big") if sealed[1] == header.KIND_CAPSULE else 0
        end, body = start + SUBKEY_PREFIX_BYTES, start + MESSAGE_HEADER_BYTES
        opener = self._openers[sealed[start:end]]
        scope, now = opener.scope, self._clock()
        if (
            # Another capsule than the one that was verified proves nothing.
            (not start or (opener.front is not None and sealed.startswith(opener.front)))
            and now < opener.expires
            and (scope is None or bound.proves(scope))
        ):
            opener.used = now
            opener.hits += 1
            ciphertext = sealed[body:] if len(sealed) <= SHORT else without_copy(sealed, body)
            return opener.decrypt(sealed[end:body], ciphertext, bound.encoded)
        raise KeyError

    def _open(self, sealed: Data | str, context: ContextLike) -> bytes:
        with self._told("open"), self._stored.looking_up() as find:
            return envelope.open_envelope(
                arguments.sealed_bytes(sealed),
                arguments.context(context),
                self._unwrap,
                find,
                self._opened,
            )

    @staticmethod
    def inspect(sealed: Data | str) -> inspection.EnvelopeInfo:
        """What an envelope says about itself; needs no key and asks no service."""
        return inspection.inspect(sealed)

    @staticmethod
    def is_sealed(data: Data | str) -> bool:
        """Whether ``data`` starts like an envelope."""
        return inspection.is_sealed(data)

    def rewrap(
        self,
        sealed: Data | str,
        *,
        add: str | Sequence[str] = (),
        remove: str | Sequence[str] = (),
        repair: bool = True,
    ) -> bytes:
        """Change the recipients; the body's bytes stay as they are.

        ``add`` names instances, ``remove`` instances or key URIs; ``repair`` adds every configured
        recipient that is missing.  Recipients unknown to this configuration stay.  Each new wrap is
        proved by unwrapping it, or reported as unverified where these credentials may not unwrap.
        Returns the envelope unchanged if there is nothing to do.
        """
        self._check_open()
        whole = arguments.sealed_bytes(sealed)
        capsule, body = envelope.split(whole)
        intent = self._intent(add, remove, repair=repair)
        if not capsule:
            key_id = bytes.fromhex(inspection.inspect(body).key_id)
            self._rewrap_stored(key_id, intent)
            return whole
        return self._rewrap(capsule, intent) + body

    def rewrap_file(
        self,
        path: str | os.PathLike[str],
        *,
        add: str | Sequence[str] = (),
        remove: str | Sequence[str] = (),
        repair: bool = True,
    ) -> bool:
        """As ``rewrap``, for a file of any size: it is replaced whole, its body copied unread.

        Whether anything changed.  If somebody else rewrites the file meanwhile, the same intent is
        carried out on what they wrote; ``RewrapConflict`` if that happens again and again.
        """
        self._check_open()
        intent = self._intent(add, remove, repair=repair)
        return rewrapping.rewrap_file(path, self._rewrap, intent)

    def _intent(
        self, add: str | Sequence[str], remove: str | Sequence[str], *, repair: bool
    ) -> rewrapping.Intent:
        return rewrapping.Intent(
            self._settings.recipients, arguments.names(add), arguments.names(remove), repair
        )

    def _rewrap(self, capsule: bytes, intent: rewrapping.Intent) -> bytes:
        with self._told("rewrap") as outcome:
            result = rewrapping.rewrap(
                capsule, self._router, self._unwrap, intent, check=self._wrap.check_post_quantum
            )
            outcome.missing, outcome.unverified = result.missing, result.unverified
            return result.capsule

    def _rewrap_stored(self, key_id: bytes, intent: rewrapping.Intent) -> None:
        rewrapping.until_undisturbed(
            lambda intent: self._stored.change(
                key_id, lambda capsule: self._rewrap(capsule, intent)
            ),
            intent,
        )

    # --- state -----------------------------------------------------------------------------------

    def health(self, *, deep: bool = False) -> HealthReport:
        """Ask every instance at once; returns within ``[calls] health_timeout``.

        The first report may take as long again to load SDKs, if nobody did (``warm_up``).
        ``deep``: not only whether the key can be used, but by wrapping and unwrapping something
        with it, which proves the permission to do so as well.  Instances that only sign are asked
        the same either way.
        """
        self._check_open()
        relays = self._router.relays
        answers = self._router.ask_all(
            self._check_deeply if deep else Relay.health, self._settings.calls.health_timeout
        )
        well = {
            name: relays[name].key_uri
            for name, said in answers.items()
            if health.is_well(said) and relays[name].breaker.state != "open"
        }
        recipients = self._settings.recipients
        report = health.report(
            relays,
            answers,
            self._router.calls,
            recipients=recipients,
            can_seal=not recipients
            or self._router.would_do(
                {name: uri for name, uri in well.items() if name in recipients},
                recipients,
                self._quorum,
            ),
        )
        return health.with_gaps(report, self._wrap.overdue())

    def warm_up(self) -> HealthReport:
        """Load every SDK, connect, and prove that every recipient can wrap and unwrap.

        For the start of a process: what is wrong with credentials or keys shows now.  Returns what
        ``health(deep=True)`` does and raises nothing of its own.
        """
        self._check_open()
        self._router.prepare()
        learning = self._router.learn_public_keys(self._router.relays)
        report = self.health(deep=True)
        wait(learning, self._settings.calls.attempt_timeout)
        return report

    def force_breaker(self, name: str, state: Literal["closed", "open"] | None) -> None:
        """Hold an instance's breaker open (for maintenance) or closed; ``None`` lets it work."""
        self._check_open()
        (known,) = self._named(name)
        self._router.relays[known].breaker.force(state)

    def _check_deeply(self, relay: Relay) -> Health:
        signs = self._settings.instances[relay.name].purpose == "sign"
        return relay.health() if signs else relay.canary()

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin found or needed, with its state and reason."""
        return tuple(self._plugins)

    @property
    def breakers(self) -> dict[str, BreakerSnapshot]:
        """Each instance's circuit breaker as it stands now."""
        return {name: relay.breaker.snapshot() for name, relay in self._router.relays.items()}

    def forget(
        self, which: ContextLike | str | bytes = None, *, key_id: str | bytes | None = None
    ) -> int:
        """Drop data keys from the cache at once; how many there were.

        All of them, or those that a context's key entries are for (``[envelope] key_context``), or
        the one with this key id (as ``inspect`` shows it).  Says nothing about the data: what they
        sealed opens as before, after asking a service.
        """
        self._check_open()
        if isinstance(which, str | bytes):
            return self._forget(None, arguments.key_id(which))
        only = None if which is None else arguments.context(which)
        return self._forget(only, arguments.key_id(key_id))

    def _forget(self, context: Context | None = None, key_id: bytes | None = None) -> int:
        return self._sealing.forget(context, key_id) + self._opened.forget(context, key_id)

    def cache_info(self) -> CacheInfo:
        """What the data-key cache holds and did since the client was made."""
        refreshed, failed = self._sealing.refreshes
        return CacheInfo(
            sealing=self._sealing.counts,
            opening=self._opened.counts,
            refreshed=refreshed,
            refresh_failed=failed,
            stale_served=self._sealing.sealed_stale,
            locked_bytes=self._arena.locked_bytes,
            lock_refused=self._arena.lock_refused,
        )

    def _sealing_key(
        self, supplied: Context, stored: Context | None, messages: int = 1, size: int = 0
    ) -> SealingKey:
        """A data key that may seal so much; asks services if there is none."""
        return self._sealing.key(self._scope(supplied, stored), messages, size)

    def _capsule_in_front(self, key: SealingKey, *, inline: bool) -> bytes:
        """The capsule in front of its body, or nothing once it is in the store."""
        if inline:
            return key.capsule
        self._stored.place(key)
        return b""

    def _reader(self, source: IO[bytes], context: ContextLike) -> io.BufferedIOBase:
        with self._stored.looking_up() as find:
            return envelope.open_stream(
                source, arguments.context(context), self._unwrap, find, self._opened
            )

    def _scope(self, supplied: Context, stored: Context | None) -> Context:
        """The context entries that go to the services as well."""
        names = self._settings.envelope.key_context
        stored = stored or Context()
        effective = {**stored, **supplied}
        if any(effective[name] != value for name, value in stored.items()):
            raise InvalidRequest("context and stored_context disagree about an entry")
        lacking = [name for name in names if name not in effective]
        if lacking:
            raise InvalidRequest(
                f"the context lacks {', '.join(lacking)}, which envelope.key_context asks for"
            )
        scope = Context({name: effective[name] for name in names})
        header.check_scope(scope)
        return scope

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this Kms is closed")

    @contextmanager
    def _told(self, operation: str) -> Iterator[_Outcome]:
        """Tell observers how a public call ended, and how long it took."""
        self._check_open()
        started, outcome = self._clock(), _Outcome()
        code = "internal_error"
        try:
            yield outcome
            code = "degraded" if outcome.missing or outcome.unverified else "ok"
        except KMSError as exc:
            code = exc.code
            raise
        except OSError:
            code = "os_error"
            raise
        finally:
            self._emit(
                Event(
                    operation,
                    code,
                    seconds=self._clock() - started,
                    missing=outcome.missing,
                    unverified=outcome.unverified,
                )
            )


def _start_in_child(reference: weakref.ref[Kms]) -> None:
    """A forked child builds everything anew: locks may be held and connections are the parent's.

    What it inherited is kept and never touched, lest its end disturbs the parent's connections.
    """
    kms = reference()
    if kms is not None and not kms._closed:  # noqa: SLF001
        kms._parents.append(kms._assembly)  # noqa: SLF001
        kms._disown_keys()  # noqa: SLF001
        kms._stored.start_clean()  # noqa: SLF001
        kms._start()  # noqa: SLF001


@attrs.define
class _Outcome:
    missing: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
