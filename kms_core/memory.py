"""Secrets in memory kept out of swap, core dumps and forked children, and zeroed at the end.

Best effort by design: a system that refuses to lock memory, or cannot leave pages out of dumps, is
told of (``Arena.lock_refused``) and never stops the work.  What holds everywhere is that content
shows in no text or copy, and that a page which was wiped is noticed and never used as a key.
"""

from __future__ import annotations

import hmac
import os
import secrets
import sys
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn

from attrs import define, field, frozen

from kms_core.errors import InvalidRequest

if TYPE_CHECKING:
    from mmap import mmap

Buffer = bytes | bytearray | memoryview

_CANARY_BYTES: Final = 16
_GRAIN: Final = 64  # slots begin at multiples of it, the first one after the canary
_MADV_WIPEONFORK: Final = 18  # linux/mman.h; Python has no name for it
_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


class _Page:
    """Memory of its own, in slots of one size."""

    def __init__(self, slot_bytes: int) -> None:
        import mmap

        self.slot_bytes: Final = slot_bytes
        self.bytes: Final = -(-(_GRAIN + slot_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = _anonymous(self.bytes)
        self.lock_refused: Final = _keep_out_of_swap(self._map)
        _advise(self._map, getattr(mmap, "MADV_DONTDUMP", None))
        _advise(self._map, _MADV_WIPEONFORK if sys.platform == "linux" else None)
        # Its first byte is not zero: a page that was wiped never looks well.
        self._canary = b"\xc1" + secrets.token_bytes(_CANARY_BYTES - 1)
        self.memory = memoryview(self._map)
        self.memory[:_CANARY_BYTES] = self._canary
        self.free = list(range(_GRAIN, self.bytes - slot_bytes + 1, slot_bytes))
        self._slots: Final = len(self.free)

    @property
    def is_well(self) -> bool:
        """Whether it holds what was put there."""
        return self.memory[:_CANARY_BYTES] == self._canary

    @property
    def is_unused(self) -> bool:
        """Whether all slots are free."""
        return len(self.free) == self._slots

    def zero(self) -> None:
        """Wipe everything, the canary too."""
        self.memory[:] = bytes(self.bytes)

    def close(self) -> None:
        """Give the memory back."""
        self.zero()
        self.memory.release()
        try:
            self._map.close()
        except BufferError:  # somebody kept a part of a view, and sees zeros now
            return


@define(eq=False)
class _Slot:
    """Where one secret lies.  ``users`` have it in use; it is wiped when the last one leaves."""

    page: _Page
    start: int
    size: int
    users: int = 0
    closed: bool = False
    view: memoryview | None = field(default=None, repr=False)


class Arena:
    """Pages for secrets of one process.  Thread-safe; takes no memory before the first secret.

    ``lock_refused`` says why memory is not locked, and is empty while there is nothing to say.  A
    forked child can use neither the arena nor its secrets and makes its own.
    """

    def __init__(self) -> None:
        self.lock_refused = ""
        self._pages: list[_Page] = []
        self._slots: set[_Slot] = set()
        self._closed = False
        self._process = os.getpid()
        # Re-entrant: the garbage collector may close a forgotten secret at any point inside.
        self._lock = threading.RLock()
        # Also when the interpreter exits.
        weakref.finalize(self, _zero, self._pages, self._slots)

    @property
    def bytes(self) -> int:
        """How much memory it has taken."""
        return sum(page.bytes for page in tuple(self._pages))

    @property
    def locked_bytes(self) -> int:
        """How much of it is kept out of swap."""
        return sum(page.bytes for page in tuple(self._pages) if not page.lock_refused)

    def secret(self, content: Buffer | int) -> SecretBytes:
        """A copy of ``content``, which remains the caller's to wipe; or so many zeros to fill.

        Raises ``InvalidRequest`` for nothing, and once the arena is closed.
        """
        size = content if isinstance(content, int) else memoryview(content).nbytes
        if size < 1:
            raise InvalidRequest("a secret has at least one byte")
        made = SecretBytes(self, self._take(size))
        if not isinstance(content, int):
            with made as view:
                view[:] = memoryview(content).cast("B")
        return made

    def close(self) -> None:
        """Zero all secrets and give the memory back; one in use, when that ends.  Idempotent."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            for slot in tuple(self._slots):
                self.discard(slot)
            self._give_back()

    # --- what secrets do -------------------------------------------------------------------------

    def enter(self, slot: _Slot) -> memoryview:
        """The slot's memory, until ``leave``; raises ``InvalidRequest`` if it is void."""
        if self._process != os.getpid():  # and the lock may be held by a thread of the parent
            raise _wiped()
        with self._lock:
            if slot.closed:
                raise InvalidRequest("this secret is closed: obtain the key again")
            if not slot.page.is_well:
                raise _wiped()
            if slot.view is None:
                slot.view = slot.page.memory[slot.start : slot.start + slot.size]
            slot.users += 1
            return slot.view

    def leave(self, slot: _Slot) -> None:
        """Undo ``enter``."""
        if self._process != os.getpid():
            return
        with self._lock:
            slot.users -= 1
            if not slot.users:
                _release(slot)
                if slot.closed:
                    self._free(slot)

    def discard(self, slot: _Slot) -> None:
        """Zero the slot now, or when its last user leaves.  Idempotent."""
        if self._process != os.getpid():
            return
        with self._lock:
            if not slot.closed:
                slot.closed = True
                if not slot.users:
                    self._free(slot)

    def _take(self, size: int) -> _Slot:
        if self._process != os.getpid():
            raise _wiped()
        slot_bytes = -(-size // _GRAIN) * _GRAIN
        with self._lock:
            if self._closed:
                raise InvalidRequest("this arena is closed: make another one")
            page = self._page_for(slot_bytes)
            slot = _Slot(page, page.free.pop(), size)
            self._slots.add(slot)
            return slot

    def _page_for(self, slot_bytes: int) -> _Page:
        for page in self._pages:
            if page.slot_bytes == slot_bytes and page.free and page.is_well:
                return page
        page = _Page(slot_bytes)
        self.lock_refused = self.lock_refused or page.lock_refused
        self._pages.append(page)
        return page

    def _free(self, slot: _Slot) -> None:
        page = slot.page
        page.memory[slot.start : slot.start + page.slot_bytes] = bytes(page.slot_bytes)
        page.free.append(slot.start)
        self._slots.discard(slot)
        if self._closed:
            self._give_back()

    def _give_back(self) -> None:
        """The pages that are not in use."""
        unused = [page for page in self._pages if page.is_unused]
        for page in unused:
            self._pages.remove(page)
            page.close()


class SecretBytes:
    """Some bytes that show themselves only inside ``with secret as view``; from ``Arena.secret``.

    The view is memory that can be written and read, and ends with the block: keep no part of it,
    and do not fork inside.  Entering raises ``InvalidRequest`` once the secret is closed or its
    memory was wiped, as in a forked child.  There is no text, copy, pickle, hash or ``==`` of it.
    """

    __slots__ = ("_arena", "_slot")

    def __init__(self, arena: Arena, slot: _Slot) -> None:
        self._arena = arena
        self._slot = slot

    def __len__(self) -> int:
        return self._slot.size

    def __enter__(self) -> memoryview:
        return self._arena.enter(self._slot)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._arena.leave(self._slot)

    def matches(self, other: SecretBytes | Buffer) -> bool:
        """Whether both have the same content, in constant time for the same length."""
        with self as view:
            if not isinstance(other, SecretBytes):
                return hmac.compare_digest(view, other)
            with other as others:
                return hmac.compare_digest(view, others)

    def close(self) -> None:
        """Zero it; if it is in use, when that ends.  Idempotent."""
        self._arena.discard(self._slot)

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SecretBytes of {len(self)} bytes>"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets are compared with matches()")

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is neither copied nor pickled")


@frozen
class Hardening:
    """What ``harden_process`` achieved; ``reasons`` for what it did not."""

    no_core_dumps: bool
    not_dumpable: bool
    reasons: tuple[str, ...] = ()


def harden_process() -> Hardening:
    """Let this process write no core dump and, on Linux, let others of its user not read it.

    For applications, early in ``main``: it concerns the whole process and those that it starts, and
    debuggers and profilers that attach to it will fail too.  Raises nothing.
    """
    limited, dumpable = _limit_core_dumps(), _refuse_readers()
    return Hardening(not limited, not dumpable, tuple(filter(None, (limited, dumpable))))


def _limit_core_dumps() -> str:
    """Why core dumps could not be turned off, or nothing."""
    try:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError) as exc:
        return f"RLIMIT_CORE: {exc}"
    return ""


def _refuse_readers() -> str:
    """Why ``PR_SET_DUMPABLE`` was not set to 0, or nothing."""
    return _call_libc("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def _call_libc(function: str, *arguments: int) -> str:
    """Why a function of the C library failed, or nothing; arguments are as wide as addresses."""
    try:
        import ctypes

        call = getattr(ctypes.CDLL(None, use_errno=True), function)
        failed = call(*map(ctypes.c_size_t, arguments))
    except (ImportError, OSError, AttributeError, TypeError):
        return f"{function}: this system has no such function"
    return f"{function}: {os.strerror(ctypes.get_errno())}" if failed else ""


def _anonymous(size: int) -> mmap:
    import mmap

    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    # Not shared, as is the default: a forked child would have the secrets, and could change them.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _keep_out_of_swap(memory: mmap) -> str:
    """Why that is refused, or nothing."""
    try:
        import ctypes
    except ImportError:
        return "mlock: this Python has no ctypes"
    held = (ctypes.c_char * len(memory)).from_buffer(memory)
    return _call_libc("mlock", ctypes.addressof(held), len(memory))


def _advise(memory: mmap, advice: int | None) -> None:
    """Tell the kernel, which may be too old to know."""
    if advice is None:
        return
    try:
        memory.madvise(advice)
    except OSError:
        return


def _zero(pages: list[_Page], slots: set[_Slot]) -> None:
    """All that no thread is using at this moment: zeros must not be taken for a key."""
    in_use = {id(slot.page) for slot in slots if slot.users}
    for page in pages:
        if id(page) not in in_use:
            page.zero()


def _release(slot: _Slot) -> None:
    if slot.view is not None:
        slot.view.release()
        slot.view = None


def _wiped() -> InvalidRequest:
    return InvalidRequest(
        "this secret is void: its memory was wiped, by a fork or at the end of its arena; "
        "obtain the key again"
    )
