"""Secrets in memory: locked where it may be, seen by nobody who does not ask, gone when told so."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from kms_core.aead import DEK_BYTES, Keys, erase, random_key, wipe
from kms_core.context import Context
from kms_core.errors import InvalidRequest
from kms_core.memory import Arena, SecretBytes, harden_process

KEY = bytes(range(1, 33))
PATIENCE = 30.0
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


@pytest.fixture
def arena() -> Iterator[Arena]:
    """An arena that is closed in the end."""
    made = Arena()
    yield made
    made.close()


def content(secret: SecretBytes) -> bytes:
    """What is in it."""
    with secret as view:
        return bytes(view)


def run(code: str) -> Any:
    """What a fresh interpreter prints, as JSON, after running ``code``; it may not complain."""
    prelude = "import json, os, sys\nfrom kms_core.memory import Arena, harden_process\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prelude + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def flags_of(view: memoryview) -> set[str]:
    """What the kernel says about the memory under ``view``."""
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    here = False
    with open("/proc/self/smaps", encoding="ascii") as lines:  # noqa: PTH123
        for line in lines:
            head, _, rest = line.partition(" ")
            if "-" in head and not head.endswith(":"):
                start, end = (int(part, 16) for part in head.split("-"))
                here = start <= address < end
            elif here and head == "VmFlags:":
                return set(rest.split())
    return set()


# --- what a secret shows -------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=10_000))
def test_a_secret_holds_what_was_put_in(data: bytes) -> None:
    """Of any length, page or more, through a view that can be written."""
    arena = Arena()
    secret = arena.secret(data)

    assert len(secret) == len(data)
    assert content(secret) == data
    with secret as view:
        view[:] = bytes(len(data))
    assert content(secret) == bytes(len(data))
    arena.close()


def test_a_secret_is_a_copy(arena: Arena) -> None:
    """The caller wipes his own; a size makes zeros to be filled."""
    own = bytearray(KEY)
    secret, empty = arena.secret(memoryview(own)), arena.secret(48)
    wipe(own)

    assert content(secret) == KEY
    assert content(empty) == bytes(48)


@pytest.mark.parametrize("nothing", [b"", 0, -1])
def test_a_secret_of_nothing_is_refused(arena: Arena, nothing: bytes | int) -> None:
    """It would match every other empty one."""
    with pytest.raises(InvalidRequest, match="at least one byte"):
        arena.secret(nothing)


def test_neighbours_do_not_touch(arena: Arena) -> None:
    """Many secrets, more than a page has room for, keep their contents."""
    made = {bytes([number]) * 32: arena.secret(bytes([number]) * 32) for number in range(200)}

    assert all(content(secret) == expected for expected, secret in made.items())
    assert arena.bytes >= 200 * 32


def test_a_secret_shows_in_no_text(arena: Arena) -> None:
    """Its length does."""
    secret = arena.secret(b"a very secret thing")

    shown = f"{secret!r} {secret} {arena!r} {vars(arena)!r}"

    assert "<SecretBytes of 19 bytes>" in shown
    assert "very" not in shown
    assert "0x61" not in shown


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(pickle.dumps, id="pickle"),
        pytest.param(copy.copy, id="copy"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(bytes, id="bytes"),
        pytest.param(memoryview, id="memoryview"),
        pytest.param(hash, id="hash"),
        pytest.param(list, id="iterate"),
        pytest.param(lambda secret: secret == KEY, id="equals"),
        pytest.param(lambda secret: secret != KEY, id="differs"),
        pytest.param(lambda secret: secret[0], id="index"),
        pytest.param(vars, id="vars"),
    ],
)
def test_a_secret_leaves_in_no_other_way(arena: Arena, attempt: Callable[[object], object]) -> None:
    """Neither copies nor comparisons that take their time from the content."""
    secret = arena.secret(KEY)

    with pytest.raises(TypeError):
        attempt(secret)


def test_matching_compares_with_anything_of_bytes(arena: Arena) -> None:
    """Another secret, in its own memory too, or a buffer."""
    secret, same, other = arena.secret(KEY), arena.secret(KEY), arena.secret(bytes(32))

    assert secret.matches(secret)
    assert secret.matches(same)
    assert secret.matches(bytearray(KEY))
    assert not secret.matches(other)
    assert not secret.matches(KEY[:31])


def test_a_view_ends_with_its_block(arena: Arena) -> None:
    """What was kept is of no use."""
    with arena.secret(KEY) as view:
        pass

    with pytest.raises(ValueError, match="released"):
        bytes(view)


def test_ciphers_take_a_view_as_their_key(arena: Arena) -> None:
    """Without a copy in between: key schedule, AES-GCM, and decryption into a secret."""
    sealed = AESGCM(KEY).encrypt(bytes(12), KEY, None)
    secret, into = arena.secret(KEY), arena.secret(32)

    with secret as view, into as target:
        assert Keys(view, Context()).commitment == Keys(KEY, Context()).commitment
        AESGCM(view).decrypt_into(bytes(12), sealed, None, target)

    assert into.matches(KEY)


# --- the end -------------------------------------------------------------------------------------


def test_a_closed_secret_is_zeroed_and_refuses(arena: Arena) -> None:
    """Its memory serves the next one, which begins with zeros."""
    secret = arena.secret(KEY)
    secret.close()
    secret.close()

    with pytest.raises(InvalidRequest, match="closed: obtain the key again"), secret:
        pass
    with pytest.raises(InvalidRequest):
        secret.matches(KEY)
    assert content(arena.secret(32)) == bytes(32)


def test_memory_is_used_again(arena: Arena) -> None:
    """A thousand secrets, one after the other, take one page."""
    arena.secret(KEY).close()
    taken = arena.bytes
    for _ in range(1000):
        arena.secret(KEY).close()

    assert arena.bytes == taken


def test_a_forgotten_secret_gives_its_memory_back(arena: Arena) -> None:
    """Garbage collection closes it."""
    arena.secret(KEY)
    gc.collect()
    taken = arena.bytes
    for _ in range(1000):
        arena.secret(KEY)

    assert arena.bytes == taken


def test_a_secret_in_use_is_zeroed_when_that_ends(arena: Arena) -> None:
    """Closing it meanwhile never puts zeros where a key is expected."""
    secret = arena.secret(KEY)
    entered, leave, seen = threading.Event(), threading.Event(), list[bytes]()

    def use() -> None:
        with secret as view:
            entered.set()
            assert leave.wait(PATIENCE)
            seen.append(bytes(view))

    thread = threading.Thread(target=use)
    thread.start()
    assert entered.wait(PATIENCE)
    secret.close()
    arena.close()
    still_there = arena.bytes
    with pytest.raises(InvalidRequest), secret:
        pass
    leave.set()
    thread.join(PATIENCE)

    assert seen == [KEY]
    assert still_there > 0
    assert arena.bytes == 0


def test_one_of_two_users_does_not_end_the_view(arena: Arena) -> None:
    """The memory is there until the last one leaves."""
    secret = arena.secret(KEY)
    with secret as first:
        with secret as second:
            assert second == first
        assert bytes(first) == KEY

    with pytest.raises(ValueError, match="released"):
        bytes(first)


def test_closing_an_arena_closes_its_secrets() -> None:
    """And nothing new is taken in; pages that are empty already go as well."""
    arena = Arena()
    secret = arena.secret(KEY)
    arena.secret(bytes(5000)).close()
    arena.close()
    arena.close()

    assert (arena.bytes, arena.locked_bytes) == (0, 0)
    with pytest.raises(InvalidRequest, match="closed"), secret:
        pass
    with pytest.raises(InvalidRequest, match="this arena is closed"):
        arena.secret(KEY)


def test_a_part_of_a_view_that_was_kept_sees_zeros() -> None:
    """Memory that somebody still points to is zeroed, and not given back."""
    arena = Arena()
    with arena.secret(KEY) as view:
        kept = view[:16]
    arena.close()

    assert bytes(kept) == bytes(16)
    assert arena.bytes == 0


def test_threads_share_an_arena(arena: Arena) -> None:
    """Nobody gets another's content."""
    wrong = []

    def work(number: int) -> None:
        mine = bytes([number]) * 32
        for _ in range(200):
            secret = arena.secret(mine)
            if content(secret) != mine:
                wrong.append(number)
            secret.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert not wrong


@pytest.mark.parametrize("damage", [b"\x00" * 16, b"\xff"])
def test_memory_that_was_overwritten_is_noticed(arena: Arena, damage: bytes) -> None:
    """Whoever writes over the canary, as a wiped page does, ends all secrets of the page."""
    secret = arena.secret(KEY)
    arena._pages[0].memory[: len(damage)] = damage

    with pytest.raises(InvalidRequest, match="void"), secret:
        pass
    assert content(arena.secret(KEY)) == KEY  # in another page


def test_nothing_is_taken_before_the_first_secret() -> None:
    """An arena that is not used costs neither memory nor imports."""
    answer = run(
        "arena = Arena()\n"
        "print(json.dumps([arena.bytes, arena.lock_refused,"
        " 'ctypes' in sys.modules, 'mmap' in sys.modules]))"
    )
    assert answer == [0, "", False, False]


def test_everything_is_zeroed_when_the_interpreter_exits() -> None:
    """Also what nobody closed; only what a thread is using stays as it is."""
    answer = run(
        "import atexit\n"
        "seen = []\n"
        "def tell():\n"
        "    print(json.dumps([bytes(page.memory).count(b'secret') for page in seen]))\n"
        "atexit.register(tell)\n"  # runs last
        "arena, other = Arena(), Arena()\n"
        "kept, used = arena.secret(b'secret'), other.secret(b'secret')\n"
        "seen += arena._pages + other._pages\n"
        "view = used.__enter__()\n"
    )
    assert answer == [0, 1]


# --- what the kernel does ------------------------------------------------------------------------


@linux
def test_the_kernel_locks_hides_and_wipes_the_memory(arena: Arena) -> None:
    """Locked, not dumped, wiped on fork: as the kernel itself tells."""
    with arena.secret(KEY) as view:
        flags = flags_of(view)

    assert {"dd", "wf"} <= flags
    assert ("lo" in flags) is (not arena.lock_refused)
    assert arena.locked_bytes == (0 if arena.lock_refused else arena.bytes)


@linux
def test_memory_that_may_not_be_locked_works_and_says_so() -> None:
    """As in containers with no allowance."""
    answer = run(
        "import ctypes, mmap, resource\n"  # which a user without rights may not find any more
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))\n"
        "os.geteuid() == 0 and os.setresuid(65534, 65534, 65534)\n"
        "arena = Arena()\n"
        "with arena.secret(b'secret') as view:\n"
        "    held = bytes(view) == b'secret'\n"
        "print(json.dumps([held, arena.lock_refused, arena.locked_bytes, arena.bytes > 0]))"
    )
    reason = answer.pop(1)
    assert answer == [True, 0, True]
    assert reason in {"mlock: Cannot allocate memory", "mlock: Operation not permitted"}


def test_without_ctypes_secrets_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Python that was built without it."""
    monkeypatch.setitem(sys.modules, "ctypes", None)
    arena = Arena()

    assert content(arena.secret(KEY)) == KEY
    assert arena.lock_refused == "mlock: this Python has no ctypes"
    arena.close()


def test_without_a_c_library_secrets_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: nothing is locked, and the reason is there to be told."""
    import ctypes

    def no_library(*arguments: object, **options: object) -> None:
        raise TypeError("no library here")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    arena = Arena()

    assert content(arena.secret(KEY)) == KEY
    assert arena.lock_refused == "mlock: this system has no such function"
    assert arena.locked_bytes == 0
    arena.close()


@needs_fork
def test_a_forked_child_cannot_use_what_its_parent_has() -> None:
    """The memory is zeros there, which is noticed; the parent's stays, and the child has its own.

    Also while another thread of the parent is inside, and when the child itself ends.
    """
    answer = run(
        "arena = Arena()\n"
        "secret, received = arena.secret(b'secret' * 5), os.pipe()\n"
        "page = arena._pages[0]\n"
        "arena._lock.acquire()\n"
        "if os.fork() == 0:\n"
        "    said = {'zeros': not any(page.memory)}\n"
        "    arena._lock = None\n"  # not even looked at
        "    for name, act in {'enter': secret.__enter__, 'take': lambda: arena.secret(b'x'),\n"
        "                      'match': lambda: secret.matches(b'secret' * 5)}.items():\n"
        "        try:\n"
        "            act()\n"
        "        except Exception as exc:\n"
        "            said[name] = type(exc).__name__\n"
        "    secret.close(); arena.close()\n"
        "    own = Arena()\n"
        "    said['own'] = own.secret(b'mine').matches(b'mine')\n"
        "    os.write(received[1], json.dumps(said).encode())\n"
        "    sys.exit()\n"
        "arena._lock.release()\n"
        "assert os.wait()[1] == 0\n"
        "said = json.loads(os.read(received[0], 10000))\n"
        "said['parent'] = secret.matches(b'secret' * 5)\n"
        "print(json.dumps(said))"
    )
    zeros = answer.pop("zeros")
    assert answer == {
        "enter": "InvalidRequest",
        "take": "InvalidRequest",
        "match": "InvalidRequest",
        "own": True,
        "parent": True,
    }
    assert zeros or sys.platform != "linux"


@linux
@needs_fork
def test_a_wiped_page_alone_is_enough_to_refuse() -> None:
    """The canary tells, whatever the process believes about itself."""
    answer = run(
        "arena = Arena()\n"
        "secret, received = arena.secret(b'secret' * 5), os.pipe()\n"
        "if os.fork() == 0:\n"
        "    arena._process = os.getpid()\n"
        "    try:\n"
        "        secret.__enter__()\n"
        "    except Exception as exc:\n"
        "        os.write(received[1], str(exc).encode())\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(json.dumps(os.read(received[0], 10000).decode()))"
    )
    assert answer.startswith("this secret is void: its memory was wiped, by a fork")


@needs_fork
def test_a_forked_child_seals_under_a_key_of_its_own(tmp_path: Path) -> None:
    """Whatever its parent keeps: no data key belongs to two processes."""
    answer = run(
        "from kms_core import InstanceConfig, Kms, Settings\n"
        "from kms_local import KeyStore\n"
        f"path = {str(tmp_path / 'keys')!r}\n"
        "KeyStore.create(path)\n"
        "kms = Kms(Settings({'local': InstanceConfig('local', {'path': path})}))\n"
        "seal = lambda: kms.inspect(kms.seal(b'data')).key_id\n"
        "before, received = [seal() for _ in range(3)], os.pipe()\n"
        "if os.fork() == 0:\n"
        "    child = [seal() for _ in range(3)]\n"
        "    os.write(received[1], json.dumps(child).encode())\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "child = json.loads(os.read(received[0], 10000))\n"
        "print(json.dumps([bool(child), *{*before, seal()} & {*child}]))\n"
        "kms.close()\n"
    )
    assert answer == [True]


# --- the process ---------------------------------------------------------------------------------


def test_hardening_turns_core_dumps_and_readers_off() -> None:
    """What it says it did is what the system confirms."""
    answer = run(
        "done = harden_process()\n"
        "import resource, ctypes\n"
        "limit = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) if sys.platform == 'linux' else 0\n"
        "again = harden_process()\n"
        "print(json.dumps([done.no_core_dumps, done.not_dumpable, list(done.reasons), limit,"
        " dumpable, again == done]))"
    )
    if sys.platform == "linux":
        assert answer == [True, True, [], [0, 0], 0, True]
    else:
        assert answer[3:] == [[0, 0], 0, True]


@linux
def test_nobody_else_reads_a_hardened_process() -> None:
    """Another process of the same user is refused by the kernel."""
    answer = run(
        "import ctypes\n"
        "os.geteuid() == 0 and os.setresuid(65534, 65534, 65534)\n"
        "harden_process()\n"
        "received = os.pipe()\n"
        "parent = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        open(f'/proc/{parent}/mem', 'rb')\n"
        "        said = 'opened'\n"
        "    except OSError as exc:\n"
        "        said = type(exc).__name__\n"
        "    os.write(received[1], said.encode())\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(json.dumps(os.read(received[0], 100).decode()))"
    )
    assert answer == "PermissionError"


def test_what_cannot_be_hardened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere, or where it is not allowed, nothing fails."""
    import ctypes

    def no_library(*arguments: object, **options: object) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setitem(sys.modules, "resource", None)
    done = harden_process()

    assert (done.no_core_dumps, done.not_dumpable) == (False, False)
    assert [reason.partition(":")[0] for reason in done.reasons] == ["RLIMIT_CORE", "prctl"]


# --- erasing -------------------------------------------------------------------------------------


@given(st.binary(min_size=2, max_size=300))
def test_erasing_zeroes_in_place(data: bytes) -> None:
    """Immutable bytes too, to their end and no further."""
    mine = bytes(bytearray(data))
    buffer, neighbour = bytearray(data), bytearray(b"\xff" * (len(data) + 2))
    erase(mine)
    erase(buffer)
    erase(memoryview(neighbour)[1:-1])

    assert mine == bytes(buffer) == bytes(len(data))
    assert neighbour == b"\xff" + bytes(len(data)) + b"\xff"


@pytest.mark.parametrize("shared", [b"", b"\x07"])
def test_bytes_that_python_shares_are_never_erased(shared: bytes) -> None:
    """There is one object for each of them in the whole process."""
    erase(shared)

    assert bytes([7]) == b"\x07"
    assert not b""


def test_random_keys_are_new_each_time() -> None:
    """And the caller can wipe them."""
    first, second = random_key(), random_key()

    assert type(first) is bytearray
    assert len(first) == len(second) == DEK_BYTES
    assert first != second
    assert any(first)
    assert any(second)


def test_keys_may_lose_the_power_over_their_capsule() -> None:
    """What is kept for messages makes no capsule, and opens what it did before."""
    keys, whole = Keys(KEY, Context()), Keys(KEY, Context())
    sealed = whole.one_shot(0x12, bytes(12)).encrypt(bytes(12), b"x", b"")
    keys.drop_capsule_key()
    keys.drop_capsule_key()

    with pytest.raises(InvalidRequest, match="unlock the capsule again"):
        keys.capsule_mac(b"")
    assert keys.commits_to(whole.commitment)
    assert keys.one_shot(0x12, bytes(12)).decrypt(bytes(12), sealed, b"") == b"x"
