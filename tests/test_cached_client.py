"""The data-key cache as applications meet it: through ``Kms`` and ``AsyncKms``.

Services count what they are asked; time is the test's where keys grow old.
"""

from __future__ import annotations

import array
import asyncio
import io
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_core import (
    AllInstancesFailed,
    AsyncKms,
    CachePolicy,
    Context,
    Duration,
    Event,
    FormatError,
    IntegrityError,
    InvalidRequest,
    KeyNotFound,
    Kms,
    KMSError,
    SealedMany,
    Unavailable,
)
from kms_core.async_client import _Services
from kms_core.cache import MAX_AGE
from kms_core.envelope import seal_message
from kms_core.header import MAX_PLAINTEXT_BYTES, SUBKEY_PREFIX_BYTES
from kms_core.sealing import NewKey
from kms_core.sessions import SESSION_MESSAGES, SMALL
from kms_core.testing import raising
from kms_core.types import THIRD_PARTY_WRAP_ALG, Ciphertext
from tests.support import PATIENCE, Clock, Events, client_for, service
from tests.vectors import decoder

ROW = {"tenant": "a", "row": "1"}
Pairs = Mapping[str, str]


class Shelf:
    """A capsule store that fails when told to."""

    def __init__(self) -> None:
        self.capsules: dict[bytes, bytes] = {}
        self.fails = False

    def get(self, key_id: bytes) -> bytes | None:
        """As kept."""
        return self.capsules.get(key_id)

    def put(self, key_id: bytes, capsule: bytes, *, replaces: bytes | None) -> None:
        """Keep it."""
        if self.fails:
            raise Unavailable("the shelf is full")
        assert self.capsules.get(key_id) == replaces
        self.capsules[key_id] = capsule

    def key_ids(self) -> Iterator[bytes]:
        """All of them."""
        return iter(sorted(self.capsules))

    def close(self) -> None:
        """There is nothing to close."""


class Rig:
    """A client with a cache over two services that count."""

    def __init__(self, *, scoped: bool = False, clock: Clock | None = None, **policy: Any) -> None:
        self.services = {name: service(name) for name in "ab"}
        self.shelf = Shelf()
        self.events = Events()
        self.kms = self.client(scoped=scoped, clock=clock, **policy)

    def client(self, *, scoped: bool = False, clock: Clock | None = None, **policy: Any) -> Kms:
        """One more client of the same services."""
        return client_for(
            self.services,
            cache=CachePolicy(**policy),
            key_context=("tenant",) if scoped else (),
            modules={"recorder": self.events.module},
            options={"capsules": self.shelf, "clock": clock},
        )

    def asked(self, hook: str) -> int:
        """How often the services were, together."""
        return sum(each.count(hook) for each in self.services.values())

    @property
    def wraps(self) -> int:
        """How many data keys were wrapped."""
        return self.asked("encrypt") // 2

    @property
    def unwraps(self) -> int:
        """How many were unwrapped."""
        return self.asked("decrypt")


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A client with the usual cache."""
    made = Rig()
    with made.kms:
        yield made


@pytest.fixture
def scoped() -> Iterator[Rig]:
    """One whose data keys belong to tenants."""
    made = Rig(scoped=True)
    with made.kms:
        yield made


def key_id(sealed: bytes) -> str:
    """That of an envelope."""
    return Kms.inspect(sealed).key_id


def wait_until(holds: Callable[[], bool]) -> None:
    """Let other threads run until something holds that no event tells of."""
    give_up = threading.Event()
    for _ in range(3000):
        if holds():
            return
        give_up.wait(0.01)
    raise AssertionError("it never came to hold")


def all_at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What this many threads bring that begin together."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait(PATIENCE)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


# --- hits ----------------------------------------------------------------------------------------


def test_one_data_key_seals_and_opens_many_messages(rig: Rig) -> None:
    """Services are asked once for each; everything else is counted as a hit."""
    sealed = [rig.kms.seal(b"%d" % number, ROW) for number in range(100)]
    assert [rig.kms.open(each, ROW) for each in sealed] == [b"%d" % n for n in range(100)]
    assert (rig.wraps, rig.unwraps) == (1, 1)
    info = rig.kms.cache_info()
    assert (info.sealing.hits, info.sealing.misses) == (99, 1)
    assert (info.opening.hits, info.opening.misses) == (99, 1)
    assert (info.hits, info.misses, info.coalesced, info.evicted) == (198, 2, 0, 0)
    assert (info.sealing.keys, info.opening.keys) == (1, 1)
    assert info.locked_bytes > 0 or info.lock_refused


def test_messages_under_one_key_have_nothing_in_common_but_that(rig: Rig) -> None:
    """Not their ciphertext: equal messages look different."""
    sealed = {rig.kms.seal(b"same", ROW) for _ in range(1000)}
    assert len(sealed) == 1000
    assert len({key_id(each) for each in sealed}) == 1


def test_without_an_age_every_call_asks() -> None:
    """Sealing and opening."""
    rig = Rig(max_age=Duration(0.0))
    with rig.kms as kms:
        for _ in range(3):
            assert kms.open(kms.seal(b"data")) == b"data"
        assert (rig.wraps, rig.unwraps) == (3, 3)
        assert kms.cache_info().hits == 0


CONTEXTS: list[Callable[[], Pairs | None]] = [
    lambda: dict(ROW),
    lambda: dict(reversed(ROW.items())),
    lambda: Context(ROW),
    lambda: Kms.context(ROW),
    lambda: type("Pairs", (dict,), {})(ROW),
]


@pytest.mark.parametrize("scoped", [False, True])
def test_contexts_of_every_kind_hit(scoped: bool) -> None:  # noqa: FBT001
    """Equal ones open what the others sealed, whatever they are and in whatever order."""
    rig = Rig(scoped=scoped)
    with rig.kms as kms:
        sealed = [kms.seal(b"data", make()) for make in CONTEXTS for _ in range(2)]
        for each in sealed:
            assert all(kms.open(each, make()) == b"data" for make in CONTEXTS)
        assert (rig.wraps, rig.unwraps) == (1, 1)


def test_no_context_is_an_empty_one(rig: Rig) -> None:
    """On the short way too."""
    nothing: list[Pairs | None] = [None, {}, Context()]
    for context in nothing:
        for _ in range(2):
            sealed = rig.kms.seal(b"data", context)
            assert rig.kms.open(sealed) == rig.kms.open(sealed, {}) == b"data"
    assert rig.wraps == 1


@pytest.mark.parametrize(
    "wrong", [{"a": 1}, {1: "a"}, {"": "a"}, {"kms_core:x": "a"}, {"a": []}, 7]
)
def test_contexts_that_are_none_are_refused_with_a_key_at_hand(rig: Rig, wrong: Any) -> None:
    """As they are without one."""
    sealed = rig.kms.seal(b"data")
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            rig.kms.seal(b"data", wrong)
        with pytest.raises(InvalidRequest):
            rig.kms.open(sealed, wrong)


def test_context_changed_after_use_is_another(rig: Rig) -> None:
    """A dict that was seen before is not taken for what it was then."""
    pairs = {"row": "1"}
    sealed = rig.kms.seal(b"data", pairs)
    rig.kms.open(sealed, pairs)
    pairs["row"] = "2"
    with pytest.raises(IntegrityError):
        rig.kms.open(sealed, pairs)


# --- whose key -----------------------------------------------------------------------------------


def test_each_tenant_has_keys_of_its_own(scoped: Rig) -> None:
    """A row of the same tenant shares its key."""
    by_tenant = {
        name: {key_id(scoped.kms.seal(b"", {"tenant": name, "row": str(n)})) for n in range(5)}
        for name in "abc"
    }
    assert all(len(ids) == 1 for ids in by_tenant.values())
    assert len(set.union(*by_tenant.values())) == scoped.wraps == 3


@pytest.mark.parametrize("inline", [True, False])
def test_other_tenant_is_refused_with_the_key_at_hand(scoped: Rig, inline: bool) -> None:  # noqa: FBT001
    """Before any cipher is used, and without asking a service."""
    sealed = scoped.kms.seal(b"data", ROW, inline=inline)
    again = scoped.kms.seal(b"data", ROW, inline=inline)
    for each in (sealed, again, again):
        assert scoped.kms.open(each, ROW) == b"data"
    unwraps = scoped.unwraps
    for other in ({**ROW, "tenant": "b"}, {"row": "1"}, None, Context({**ROW, "tenant": "b"})):
        for each in (sealed, again):
            with pytest.raises(IntegrityError):
                scoped.kms.open(each, other)
    assert scoped.unwraps == unwraps == 1


def test_message_outside_its_keys_scope_is_refused_with_the_key_at_hand(scoped: Rig) -> None:
    """Though it authenticates: whoever has the key of one tenant seals for nobody else with it."""
    scoped.kms.seal(b"data", ROW)
    genuine = scoped.kms.seal(b"data", ROW)
    assert scoped.kms.open(genuine, ROW) == b"data"
    key, outside = scoped.kms._sealing.key(Context({"tenant": "a"})), Context({"row": "1"})
    session = scoped.kms._sessions["a",]
    iv = next(session.ivs)
    known_salt = session.inline + iv + session.encrypt(iv, b"data", outside.encoded)
    other_salt = key.capsule + seal_message(key.keys, b"data", outside)
    stored = key.capsule + seal_message(key.keys, b"data", outside, Context({"tenant": "b"}))
    for forged in (known_salt, other_salt, stored):
        with pytest.raises(IntegrityError):
            scoped.kms.open(forged, outside)
    assert scoped.unwraps == 1


def test_wrong_context_is_refused_with_the_key_at_hand(rig: Rig) -> None:
    """As without."""
    sealed = rig.kms.seal(b"data", ROW)
    assert rig.kms.open(sealed, ROW) == rig.kms.open(sealed, ROW) == b"data"
    for other in ({**ROW, "row": "2"}, {}, None, {**ROW, "more": ""}):
        with pytest.raises(IntegrityError):
            rig.kms.open(sealed, other)
    assert rig.unwraps == 1


def test_context_that_lacks_the_scope_is_refused_after_a_stored_context_had_it(
    scoped: Rig,
) -> None:
    """A context object does not go on with a key that only the stored context led to."""
    context = Context({"row": "1"})
    sealed = scoped.kms.seal(b"data", context, stored_context={"tenant": "a"})
    assert scoped.kms.open(sealed, context) == b"data"
    with pytest.raises(InvalidRequest, match="tenant"):
        scoped.kms.seal(b"data", context)


def test_clients_that_share_a_context_keep_their_keys_apart() -> None:
    """However often they take turns."""
    context = Context(ROW)
    first, second = Rig(), Rig()
    with first.kms, second.kms:
        ids = [(key_id(first.kms.seal(b"", context)), key_id(second.kms.seal(b"", context)))]
        ids += [(key_id(first.kms.seal(b"", context)), key_id(second.kms.seal(b"", context)))]
        assert ids[0] == ids[1]
        assert ids[0][0] != ids[0][1]
        assert (first.wraps, second.wraps) == (1, 1)
        with pytest.raises(KMSError):
            second.kms.open(first.kms.seal(b"", context), context)


def test_one_service_can_hold_keys_of_two_clients(rig: Rig) -> None:
    """What one sealed the other opens, and does not adopt its key for sealing."""
    with rig.client() as other:
        sealed = rig.kms.seal(b"data", ROW)
        assert other.open(sealed, ROW) == b"data"
        assert key_id(other.seal(b"data", ROW)) != key_id(sealed)


def test_context_is_as_good_as_new_when_its_key_is_gone() -> None:
    """Replaced, expired or forgotten: the next message has the new key."""
    clock = Clock()
    rig = Rig(clock=clock, max_age=Duration(100.0), refresh_ahead=0.0)
    context = Context(ROW)
    with rig.kms as kms:
        ids = []
        for change in (lambda: clock.advance(100), kms.forget, lambda: kms.forget(ROW)):
            ids += [key_id(kms.seal(b"", context)) for _ in range(2)]
            change()
        ids += [key_id(kms.seal(b"", context)) for _ in range(2)]
    assert list(Counter(ids).values()) == [2, 2, 2, 2]
    with pytest.raises(InvalidRequest, match="closed"):
        kms.seal(b"", context)


def test_forgetting_a_tenant_or_a_key(scoped: Rig) -> None:
    """Drops what seals and what opens; the data opens as before, after asking a service."""
    kms = scoped.kms
    sealed = {name: kms.seal(b"data", {"tenant": name}) for name in "ab"}
    for name, each in sealed.items():
        kms.open(each, {"tenant": name})
    assert kms.forget({"tenant": "a"}) == 2
    assert kms.forget(key_id(sealed["b"])) == 2
    assert kms.forget() == 0
    assert kms.open(sealed["a"], {"tenant": "a"}) == b"data"
    assert scoped.unwraps == 3
    assert kms.forget(key_id=bytes.fromhex(key_id(sealed["a"]))) == 1
    with pytest.raises(InvalidRequest, match="hexadecimal"):
        kms.forget(key_id="no id")


def test_closing_leaves_no_key_behind(rig: Rig) -> None:
    """Neither a context nor an envelope that was in use gets at one."""
    context = Context(ROW)
    sealed = rig.kms.seal(b"data", context)
    sealed = rig.kms.seal(b"data", context)
    rig.kms.open(sealed, context)
    (opener,) = rig.kms._openers.values()
    rig.kms.close()
    assert (rig.kms._sessions, rig.kms._openers) == ({}, {})
    ciphers: list[Callable[..., bytes]] = [context.session.encrypt, opener.decrypt]
    for cipher in ciphers:
        with pytest.raises(TypeError):
            cipher(bytes(12), b"", b"")
    with pytest.raises(InvalidRequest, match="closed"):
        rig.kms.seal(b"", context)
    with pytest.raises(InvalidRequest, match="closed"):
        rig.kms.open(sealed, context)


# --- what may be sealed --------------------------------------------------------------------------

KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "writable view": lambda data: memoryview(bytearray(data)),
    "every byte backwards": lambda data: memoryview(data[::-1])[::-1],
    "items of eight bytes": lambda data: memoryview(data).cast("Q"),
    "two dimensions": lambda data: memoryview(data).cast("B", shape=[2, len(data) // 2]),
}
#: Those that any number of bytes can have.
WHOLE = KINDS.keys() - {"items of eight bytes", "two dimensions"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, SMALL, 2 * SMALL, 9 * SMALL])
def test_data_and_envelopes_may_be_views(rig: Rig, kind: str, size: int) -> None:
    """Of any shape, with a key at hand and without, in every form."""
    make, data = KINDS[kind], os.urandom(16) * (size // 16)
    for _ in range(2):
        for inline in (True, False):
            sealed = rig.kms.seal(make(data), ROW, inline=inline)
            assert rig.kms.open(sealed, ROW) == data
            assert rig.kms.open(sealed, ROW) == data
            if len(sealed) % 8 == 0 or kind in WHOLE:
                assert rig.kms.open(make(sealed), ROW) == data
    assert rig.wraps == 1


@pytest.mark.parametrize("form", ["two dimensions", "items of eight bytes"])
def test_envelope_may_be_a_view_of_any_shape(rig: Rig, form: str) -> None:
    """With a length that such a view can have."""
    for size in range(16):
        sealed = rig.kms.seal(bytes(size))
        if len(sealed) % 8 == 0:
            assert rig.kms.open(sealed) == bytes(size)
            assert rig.kms.open(KINDS[form](sealed)) == bytes(size)


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, MAX_PLAINTEXT_BYTES])
@pytest.mark.parametrize("inline", [True, False])
def test_sizes_up_to_the_limit(rig: Rig, size: int, inline: bool) -> None:  # noqa: FBT001
    """Are sealed and opened, on the short way and on the long one."""
    data = bytes(size)
    rig.kms.seal(data, ROW, inline=inline)
    sealed = rig.kms.seal(data, ROW, inline=inline)
    for _ in range(2):
        assert rig.kms.open(sealed, ROW) == data


def test_more_than_a_message_holds_is_refused(rig: Rig) -> None:
    """However few items it has, and whether or not a key is at hand."""
    data = bytearray(MAX_PLAINTEXT_BYTES + 8)
    view = memoryview(data)
    shapes = (bytes(data), data, view.cast("Q"), view.cast("B", shape=[1, len(data)]))
    for _ in range(2):
        for shape in shapes:
            with pytest.raises(InvalidRequest, match="sealing"):
                rig.kms.seal(shape)
        rig.kms.seal(b"")
    with pytest.raises(InvalidRequest, match="value 1"):
        rig.kms.seal_many([b"", shapes[-1]])
    with pytest.raises(FormatError):
        rig.kms.open(rig.kms.seal(b"") + bytes(len(data)))


@pytest.mark.parametrize("wrong", ["text", array.array("B", b"1"), [1, 2], 7, None], ids=repr)
def test_what_is_not_bytes_is_refused(rig: Rig, wrong: Any) -> None:
    """In the same words with a key at hand and without."""
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=f"got {type(wrong).__name__}"):
            rig.kms.seal(wrong)
        rig.kms.seal(b"")


def test_armored_and_stored_contexts_use_the_same_key(rig: Rig) -> None:
    """They go a longer way, but ask no service."""
    rig.kms.seal(b"data", ROW)
    for _ in range(2):
        text = rig.kms.seal(b"data", ROW, armor=True)
        stored = rig.kms.seal(b"data", {"row": "1"}, stored_context={"tenant": "a"})
        assert rig.kms.open(text, ROW) == rig.kms.open(stored, {"row": "1"}) == b"data"
        with pytest.raises(IntegrityError):
            rig.kms.open(stored, ROW)
    assert (rig.wraps, rig.unwraps) == (1, 1)


def test_streams_use_the_cache(rig: Rig) -> None:
    """Each has the data key that there is, and a key of its own derived from it."""
    rig.kms.seal(b"", ROW)
    target = io.BytesIO()
    with rig.kms.sealing(target, ROW) as writer:
        writer.write(b"data")
    for _ in range(2):
        assert rig.kms.opening(io.BytesIO(target.getvalue()), ROW).read() == b"data"
    assert (rig.wraps, rig.unwraps) == (1, 1)


# --- the independent reader ----------------------------------------------------------------------


@pytest.fixture
def decode(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, Pairs], bytes]:
    """Opens an envelope with the other implementation; only the wrap is the service's own."""
    holder = rig.services["a"]

    def unwrap(_: bytes, blob: bytes, bound: bytes) -> bytes:
        wrapped = Ciphertext(blob, f"{holder.key_uri}/1", wrap_alg=THIRD_PARTY_WRAP_ALG)
        return bytes(holder.decrypt("default", wrapped, Context.decode(bound)))

    monkeypatch.setitem(decoder.UNWRAP, THIRD_PARTY_WRAP_ALG, unwrap)
    keys = decoder.Keys({f"{holder.key_uri}/1": (THIRD_PARTY_WRAP_ALG, b"")})

    def open_(sealed: bytes, pairs: Pairs) -> bytes:
        if sealed[1] == 0x11:
            return decoder.open_inline(sealed, pairs, keys)
        return decoder.open_detached(rig.shelf.capsules[sealed[3:19]], sealed, pairs, keys)

    return open_


def test_another_reader_opens_everything(rig: Rig, decode: Callable[[bytes, Pairs], bytes]) -> None:
    """Hits and misses, small and large, inline and compact, single ones and many."""
    for inline in (True, False):
        for size in (0, 10, SMALL + 1):
            for _ in range(3):
                assert decode(rig.kms.seal(bytes(size), ROW, inline=inline), ROW) == bytes(size)
        many = rig.kms.seal_many([b"a", b"", bytes(SMALL + 1)], ROW, inline=inline)
        plain = [decode(many.capsule + message, ROW) for message in many.messages]
        assert plain == [b"a", b"", bytes(SMALL + 1)]
    stored = rig.kms.seal(b"data", {"row": "1"}, stored_context={"tenant": "a"})
    assert decode(stored, {"row": "1"}) == b"data"


# --- altered envelopes ---------------------------------------------------------------------------


class Pair:
    """A client that keeps keys and one that keeps none, over the same services and capsules."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.rig = Rig(scoped=True, clock=self.clock, max_age=Duration(MAX_AGE), refresh_ahead=0.0)
        self.plain = self.rig.client(scoped=True, clock=self.clock, max_age=Duration(0.0))
        kms = self.rig.kms
        kms.seal(b"", ROW)
        self.sealed = {inline: kms.seal(b"data", ROW, inline=inline) for inline in (True, False)}
        kms.seal(b"", ROW, inline=False)
        self.sealed[False] = kms.seal(b"data", ROW, inline=False)
        for each in self.sealed.values():
            assert kms.open(each, ROW) == kms.open(each, ROW) == b"data"

    def outcomes(self, sealed: Any, pairs: Pairs) -> tuple[Any, Any]:
        """What becomes of it with a cache, and without: plaintexts, or kinds of error."""
        self.clock.advance(60)  # how often one may ask for what does not open is limited
        return outcome(self.rig.kms, sealed, pairs), outcome(self.plain, sealed, pairs)

    def close(self) -> None:
        """Both of them."""
        self.rig.kms.close()
        self.plain.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Made once: nothing that is opened changes it."""
    made = Pair()
    yield made
    made.close()


def outcome(kms: Kms, sealed: Any, pairs: Pairs) -> Any:
    """The plaintext, or the kind of error."""
    try:
        return kms.open(sealed, pairs)
    except KMSError as exc:
        return type(exc)


@pytest.mark.parametrize("inline", [True, False])
def test_no_altered_byte_is_overlooked(pair: Pair, inline: bool) -> None:  # noqa: FBT001
    """At any position, with the key at hand; and the error is the one it is without."""
    sealed = pair.sealed[inline]
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1 << position % 8
        cached, uncached = pair.outcomes(bytes(altered), ROW)
        assert cached is uncached, position
        assert issubclass(cached, FormatError | IntegrityError | KeyNotFound), position


@given(data=st.data())
def test_a_cache_changes_no_outcome(pair: Pair, data: st.DataObject) -> None:
    """For whatever became of an envelope, as whatever it is given and with whatever context."""
    sealed = bytearray(pair.sealed[data.draw(st.booleans())])
    for _ in range(data.draw(st.integers(0, 2))):
        change = data.draw(
            st.sampled_from(["flip", "cut", "cut front", "insert", "append", "swap"])
        )
        at = data.draw(st.integers(0, len(sealed)))
        match change:
            case "flip" if at < len(sealed):
                sealed[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del sealed[at:]
            case "cut front":
                del sealed[:at]
            case "insert":
                sealed[at:at] = data.draw(st.binary(max_size=4))
            case "append":
                sealed += data.draw(st.binary(max_size=40))
            case "swap":
                sealed = bytearray(pair.sealed[False] + sealed)
    pairs = data.draw(st.sampled_from([ROW, {}, {"tenant": "b", "row": "1"}, {"tenant": "a"}]))
    given_ = data.draw(st.sampled_from([bytes, bytearray, memoryview]))(bytes(sealed))
    cached, uncached = pair.outcomes(given_, pairs)
    assert cached == uncached


def test_altered_capsule_in_front_of_a_known_key_is_refused(rig: Rig) -> None:
    """Each byte of it, though the message behind it would open."""
    sealed = rig.kms.seal(b"data", ROW)
    rig.kms.open(sealed, ROW)
    end = int.from_bytes(sealed[4:8], "big")
    for position in range(end):
        altered = bytearray(sealed)
        altered[position] ^= 0x80
        with pytest.raises(KMSError):
            rig.kms.open(bytes(altered), ROW)
    assert rig.kms.open(sealed, ROW) == b"data"


def test_garbage_under_a_known_key_id_drives_nothing_out(rig: Rig) -> None:
    """Whoever knows a key id can name any salt; the short way stays for real messages."""
    sealed = [rig.kms.seal(b"data", ROW, inline=False) for _ in range(2)][1]
    rig.kms.open(sealed, ROW)
    openers = dict(rig.kms._openers)
    for _ in range(300):
        with pytest.raises(IntegrityError):
            rig.kms.open(sealed[:19] + os.urandom(60), ROW)
    assert rig.kms._openers == openers


# --- compact messages ----------------------------------------------------------------------------


def test_compact_message_is_not_returned_before_its_capsule_is_stored(rig: Rig) -> None:
    """Else it could not be opened; the next call tries again."""
    rig.shelf.fails = True
    rig.kms.seal(b"data", ROW)
    for _ in range(3):
        with pytest.raises(Unavailable, match="full"):
            rig.kms.seal(b"data", ROW, inline=False)
        with pytest.raises(Unavailable, match="full"):
            rig.kms.seal(bytes(SMALL + 1), ROW, inline=False)
    rig.shelf.fails = False
    for size in (4, SMALL + 1, 4, SMALL + 1):
        sealed = rig.kms.seal(bytes(size), ROW, inline=False)
        assert sealed[3:19] in rig.shelf.capsules
        assert rig.kms.open(sealed, ROW) == bytes(size)
    assert rig.wraps == len(rig.shelf.capsules) == 1


def test_many_threads_store_a_capsule_once(rig: Rig) -> None:
    """And none returns before it is there."""

    def seal(_: int) -> bool:
        return rig.kms.seal(b"data", ROW, inline=False)[3:19] in rig.shelf.capsules

    assert all(all_at_once(32, seal))
    assert rig.wraps == len(rig.shelf.capsules) == 1


# --- many at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False])
def test_many_values_share_one_capsule(rig: Rig, inline: bool) -> None:  # noqa: FBT001
    """From any iterable; each message is also an envelope of its own."""
    values = [b"%d" % number for number in range(100)]
    many = rig.kms.seal_many((value for value in values), ROW, inline=inline)
    assert len(many) == 100
    assert bool(many.capsule) is inline
    assert rig.kms.open_many(many, ROW) == values
    assert [rig.kms.open(many.capsule + each, ROW) for each in many.messages] == values
    assert rig.kms.open_many((many.capsule + each for each in many.messages), ROW) == values
    assert (rig.wraps, rig.unwraps) == (1, 1)


def test_each_value_can_have_its_context(scoped: Rig) -> None:
    """And opens with that alone."""
    contexts: list[Pairs | None] = [{"tenant": "a", "row": str(n)} for n in range(10)]
    values = [b"%d" % n for n in range(10)]
    many = scoped.kms.seal_many(values, contexts)
    assert scoped.kms.open_many(many, contexts) == values
    for message, context, value in zip(many.messages, contexts, values, strict=True):
        assert scoped.kms.open(many.capsule + message, context) == value
    with pytest.raises(IntegrityError):
        scoped.kms.open_many(many, contexts[::-1])


def test_contexts_must_be_as_many_as_values(rig: Rig) -> None:
    """Neither more nor fewer."""
    many = rig.kms.seal_many([b"a", b"b"])
    for count in (0, 1, 3):
        with pytest.raises(InvalidRequest, match=f"{count} contexts for 2 values"):
            rig.kms.seal_many([b"a", b"b"], [{}] * count)
        with pytest.raises(InvalidRequest, match=f"{count} contexts for 2 values"):
            rig.kms.open_many(many, [{}] * count)


def test_values_of_several_tenants_are_refused(scoped: Rig) -> None:
    """One data key cannot belong to two."""
    with pytest.raises(InvalidRequest, match="key_context"):
        scoped.kms.seal_many([b"a", b"b"], [{"tenant": "a"}, {"tenant": "b"}])
    many = scoped.kms.seal_many([b"a", b"b"], [{"tenant": "a"}] * 2)
    with pytest.raises(IntegrityError):
        scoped.kms.open_many(many, [{"tenant": "a"}, {"tenant": "b"}])
    with pytest.raises(IntegrityError):
        scoped.kms.open_many(many, {"tenant": "b"})
    assert scoped.unwraps == 0


@pytest.mark.parametrize("wrong", ["text", None, 7, array.array("B", b"1")], ids=repr)
@pytest.mark.parametrize("at", [0, 1, 700, 1023, 1024, 1099])
def test_value_that_is_not_bytes_is_named(rig: Rig, wrong: Any, at: int) -> None:
    """By its number, before anything is sealed."""
    values: list[Any] = [b""] * 1100
    values[at] = wrong
    with pytest.raises(InvalidRequest, match=f"value {at}: expected bytes"):
        rig.kms.seal_many(values)
    assert rig.wraps == 0


@pytest.mark.parametrize("kind", KINDS)
def test_values_may_be_views(rig: Rig, kind: str) -> None:
    """Of any shape."""
    data = os.urandom(32)
    assert rig.kms.open_many(rig.kms.seal_many([KINDS[kind](data)] * 3)) == [data] * 3


def test_no_values_are_no_messages(rig: Rig) -> None:
    """With one context, or with none for none."""
    contexts: list[Any] = [None, ROW, []]
    for context in contexts:
        many = rig.kms.seal_many([], context)
        assert many.messages == []
        assert rig.kms.open_many(many, context) == []
    assert rig.kms.open_many([]) == []


@pytest.mark.parametrize("at", [0, 1, 4])
def test_altered_message_is_named(rig: Rig, at: int) -> None:
    """Wherever it is altered or cut, and nothing comes out."""
    many = rig.kms.seal_many([b"data"] * 5, ROW)
    message = many.messages[at]
    cuts = [message[:size] for size in range(len(message))]
    flips = [
        message[:position] + bytes((message[position] ^ mask,)) + message[position + 1 :]
        for position in range(len(message))
        for mask in (0x01, 0xFE)  # the latter makes a question mark of the first byte
    ]
    for altered in (*cuts, *flips, b"?" + message[1:], message + b"\0"):
        messages = [*many.messages[:at], altered, *many.messages[at + 1 :]]
        with pytest.raises((FormatError, IntegrityError)) as caught:
            rig.kms.open_many(SealedMany(many.capsule, messages), ROW)
        assert caught.value.__notes__ == [f"at value {at} of those given to open_many()"]
        alone = (FormatError, IntegrityError) if altered[1:2] == b"\x13" else caught.type
        with pytest.raises(alone):  # short as it is, it is no stream either
            rig.kms.open(many.capsule + altered, ROW)


def test_message_of_another_kind_is_named(rig: Rig) -> None:
    """Be it no bytes, another key's or one with a stored context."""
    many = rig.kms.seal_many([b"data"] * 3, ROW)
    stored = rig.kms.seal(b"data", ROW, stored_context={"more": "a"})
    rig.kms.forget()
    foreign = rig.kms.seal_many([b"data"], ROW).messages[0]
    wrong: list[tuple[Any, type[KMSError]]] = [
        ("text", InvalidRequest),
        (foreign, IntegrityError),
        (stored[len(many.capsule) :], IntegrityError),
        (many.capsule + many.messages[0], FormatError),
    ]
    for message, kind in wrong:
        with pytest.raises(kind) as caught:
            rig.kms.open_many(SealedMany(many.capsule, [*many.messages, message]), ROW)
        assert caught.value.__notes__ == ["at value 3 of those given to open_many()"]


def test_altered_capsule_of_many_is_refused(rig: Rig) -> None:
    """With its key at hand too."""
    many = rig.kms.seal_many([b"data"] * 3, ROW)
    rig.kms.open_many(many, ROW)
    for position in range(len(many.capsule)):
        altered = bytearray(many.capsule)
        altered[position] ^= 1
        with pytest.raises(KMSError):
            rig.kms.open_many(SealedMany(bytes(altered), many.messages), ROW)


def test_without_an_age_many_values_cost_one_call_each_way() -> None:
    """A whole batch shares the one data key, which is not kept."""
    rig = Rig(max_age=Duration(0.0))
    with rig.kms as kms:
        many = kms.seal_many([b"data"] * 100, ROW)
        assert kms.open_many(many, ROW) == [b"data"] * 100
        assert (rig.wraps, rig.unwraps) == (1, 1)
        assert kms.cache_info().sealing.keys == kms.cache_info().opening.keys == 0


def test_large_batches_take_several_subkeys(rig: Rig) -> None:
    """And still one data key."""
    many = rig.kms.seal_many([b""] * (SESSION_MESSAGES + 1))
    per_salt = Counter(message[:SUBKEY_PREFIX_BYTES] for message in many.messages)
    assert list(per_salt.values()) == [SESSION_MESSAGES, 1]
    assert len({message[31:43] for message in many.messages}) == SESSION_MESSAGES + 1
    assert rig.kms.open_many(many) == [b""] * (SESSION_MESSAGES + 1)
    assert (rig.wraps, rig.unwraps) == (1, 1)


def test_batch_of_more_than_one_key_may_seal_is_refused() -> None:
    """Without asking a service."""
    rig = Rig(max_messages=10)
    with rig.kms as kms:
        with pytest.raises(InvalidRequest, match="max_messages"):
            kms.seal_many([b""] * 11)
        assert rig.wraps == 0
        assert len(kms.seal_many([b""] * 10)) == 10


# --- threads and time ----------------------------------------------------------------------------


def test_sixty_four_threads_on_an_expired_key_cost_one_wrap() -> None:
    """For each recipient, and one unwrap for all who open the same envelope cold."""
    clock = Clock()
    rig = Rig(clock=clock, max_age=Duration(100.0), refresh_ahead=0.0)
    with rig.kms as kms:
        context = Context(ROW)
        kms.seal(b"data", context)
        clock.advance(100)
        sealed = all_at_once(64, lambda _: kms.seal(b"data", context))
        assert rig.wraps == 2
        assert len({key_id(each) for each in sealed}) == 1
        opened = all_at_once(64, lambda _: kms.open(sealed[0], context))
        assert opened == [b"data"] * 64
        assert rig.unwraps == 1
        assert all(kms.open(each, context) == b"data" for each in sealed)
        assert rig.unwraps == 1


def test_no_caller_waits_for_a_refresh() -> None:
    """Ten thousand operations across twenty expiries ask services in the background only."""
    clock = Clock()
    rig = Rig(clock=clock, max_age=Duration(100.0))
    with rig.kms as kms:
        context = Context(ROW)
        kms.open(kms.seal(b"data", context), context)
        asked_by: set[str] = set()
        make = kms._sealing._make

        def noted(scope: Context) -> NewKey:
            asked_by.add(threading.current_thread().name)
            return make(scope)

        kms._sealing._make = noted
        used = set()
        for _ in range(10_000):
            used.add(kms.seal(b"data", context)[-75:-59])
            clock.advance(0.2)
            wait_until(lambda: kms._background.stats.busy + kms._background.stats.queued == 0)
        info = kms.cache_info()
        assert info.sealing.misses == 1
        assert info.refreshed == rig.wraps - 1 >= 20
        assert info.refresh_failed == 0
        assert len(used) == rig.wraps
        assert asked_by
        assert all(name.startswith("kms-cache-") for name in asked_by)


def test_rows_of_many_tenants_hit() -> None:
    """A hundred thousand operations with a context each: at least 99 in 100 ask nobody."""
    rig = Rig(scoped=True)
    with rig.kms as kms:
        for number in range(50_000):
            pairs = {"tenant": str(number % 100), "row": str(number)}
            assert kms.open(kms.seal(b"data", pairs), pairs) == b"data"
        info = kms.cache_info()
        assert info.hits + info.misses + info.coalesced >= 100_000
        assert info.hits >= 99_000
        assert (rig.wraps, rig.unwraps) == (100, 100)


def test_outage_stops_nobody_who_has_a_key() -> None:
    """What is cached goes on; beyond its age a key seals only where the policy says so."""
    clock = Clock()
    rig = Rig(clock=clock, max_age=Duration(100.0), stale_if_error=Duration(50.0))
    with rig.kms as kms:
        sealed = kms.seal(b"data", ROW)
        kms.open(sealed, ROW)
        for each in rig.services.values():
            for hook in ("encrypt", "decrypt"):
                each.always(hook, raising(Unavailable, "no route"))
        clock.advance(99)
        assert kms.open(kms.seal(b"data", ROW), ROW) == b"data"
        clock.advance(11)
        assert key_id(kms.seal(b"data", ROW)) == key_id(sealed)
        with pytest.raises(AllInstancesFailed):
            kms.open(sealed, ROW)
        assert kms.cache_info().stale_served == 1
        assert rig.events.last("seal").outcome == "ok"
        assert [event.outcome for event in rig.events.of("seal")].count("stale") == 1
        clock.advance(41)
        with pytest.raises(AllInstancesFailed):
            kms.seal(b"data", ROW)


def test_hits_tell_observers_nothing(rig: Rig) -> None:
    """Only what asks services, or goes the long way, is an event."""
    rig.kms.seal(b"data", ROW)
    before = len(rig.events.seen)
    for _ in range(10):
        rig.kms.seal(b"data", ROW)
    assert len(rig.events.seen) == before


def test_observer_may_seal_what_it_is_told() -> None:
    """Even while the key that it needs is being made, and it is told of just that."""
    sealed: list[bytes] = []
    telling = ContextVar("telling", default=False)

    def observe(event: Event) -> None:
        if not telling.get():  # else there is no end to what there is to tell
            token = telling.set(True)
            sealed.append(kms.seal(event.operation.encode()))
            telling.reset(token)

    kms = client_for(
        {name: service(name) for name in "ab"},
        cache=CachePolicy(),
        options={"observe": observe},
    )
    with kms:
        assert kms.open(kms.seal(b"data")) == b"data"
        assert {"encrypt", "seal"} <= {kms.open(each).decode() for each in list(sealed)}


# --- forks ---------------------------------------------------------------------------------------

FORK = """
    import os, sys
    from kms_core import CachePolicy, Context
    from tests.support import client_for, service
    from tests.test_cached_client import Shelf

    services = {"a": service("a")}
    kms = client_for(services, cache=CachePolicy(), options={"capsules": Shelf()})
    context = Context({"row": "1"})
    plain = {"row": "2"}

    def ids():
        sealed = [kms.seal(b"data", pairs, inline=inline)
                  for pairs in (context, plain) for inline in (True, False) for _ in range(2)]
        assert all(kms.open(each, pairs) == b"data"
                   for each, pairs in zip(sealed, [context] * 4 + [plain] * 4))
        return {kms.inspect(each).key_id for each in sealed}

    before = ids()
    old = kms.seal(b"data", context)
    assert len(before) == 1
    kms.open(old, context)
    session = context.session
    asked = services["a"].count("decrypt")
    child = os.fork()
    if child == 0:
        try:
            assert kms.cache_info().hits == kms.cache_info().misses == 0
            assert session.expires == float("-inf")
            assert kms.open(old, context) == b"data"
            assert services["a"].count("decrypt") == asked + 1
            mine = ids()
            assert len(mine) == 1 and not mine & before
            kms.close()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ids() == before
    assert services["a"].count("decrypt") == asked
    kms.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no os.fork")
def test_forked_child_has_keys_of_its_own() -> None:
    """It seals with none of its parent's, asks again to open, and its parent goes on."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- asyncio -------------------------------------------------------------------------------------


def workers() -> int:
    """Threads that calls of tasks run on."""
    return sum(thread.name.startswith("kms-async-") for thread in threading.enumerate())


def test_tasks_with_keys_at_hand_need_no_thread(rig: Rig) -> None:
    """Two thousand of them; the first ones ask on a thread, and the loop goes on."""

    async def work() -> None:
        async with AsyncKms(rig.kms) as kms:
            context = kms.context(ROW)
            await kms.seal(b"data", context)
            sealed = await kms.seal(b"data", context)
            assert await kms.open(sealed, context) == b"data"
            assert workers() == 1
            submitted: list[Any] = []
            submit = kms._workers.submit

            def noted(call: Callable[[], Any]) -> Future[Any]:
                submitted.append(call)
                return submit(call)

            kms._workers.submit = noted  # type: ignore[method-assign]

            async def one(number: int) -> None:
                data = b"%d" % number
                assert await kms.open(await kms.seal(data, context), context) == data

            await asyncio.gather(*(one(number) for number in range(2000)))
            assert submitted == []
            assert await kms.open(await kms.seal(b"data", ROW, armor=True), ROW) == b"data"
            assert len(submitted) == 2

    asyncio.run(asyncio.wait_for(work(), 60))
    assert (rig.wraps, rig.unwraps) == (1, 1)


def test_errors_of_tasks_tell_of_nothing_else(rig: Rig) -> None:
    """That a key was looked for first is no part of what went wrong."""

    async def work() -> None:
        async with AsyncKms(rig.kms) as kms:
            sealed = await kms.seal(b"data", ROW)
            with pytest.raises(IntegrityError) as caught:
                await kms.open(sealed, {"row": "2"})
            assert not isinstance(caught.value.__context__, _Services)
            with pytest.raises(InvalidRequest) as refused:
                await kms.seal("text", ROW)  # type: ignore[call-overload]
            assert refused.value.__context__ is None

    asyncio.run(asyncio.wait_for(work(), 60))
