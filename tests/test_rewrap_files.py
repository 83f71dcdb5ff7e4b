"""Files are rewrapped whole or not at all, whoever else does so, and their bodies are not read."""

from __future__ import annotations

import io
import os
import random
import resource
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

import pytest
from attrs import evolve

from kms_core import (
    AllInstancesFailed,
    FormatError,
    IntegrityError,
    InvalidRequest,
    Kms,
    MemoryCapsules,
    RewrapConflict,
    Unavailable,
    hookimpl,
)
from kms_core.aead import Keys
from kms_core.envelope import sign_capsule, unlock
from kms_core.header import Capsule, parse_capsule
from kms_core.testing import Faulty, MemoryStore, raising
from kms_core.testing.processes import in_child
from tests.support import client_for, module, service

CONTEXT = {"tenant": "42"}
DOWN = raising(Unavailable, "down")
MIB = 1 << 20
PLAIN = random.Random(1).randbytes(3 * MIB + 7)  # noqa: S311  any bytes will do


@pytest.fixture(scope="module")
def stores() -> dict[str, MemoryStore]:
    """Three services, which forked children know as well."""
    return {name: MemoryStore(name) for name in "abc"}


@pytest.fixture
def services(stores: dict[str, MemoryStore]) -> dict[str, Faulty]:
    """One instance on each."""
    return on(stores)


def on(stores: Mapping[str, MemoryStore], names: str = "abc") -> dict[str, Faulty]:
    """New instances on these stores."""
    return {name: service(name, store=stores[name]) for name in names}


@pytest.fixture
def kms(services: dict[str, Faulty]) -> Iterator[Kms]:
    """Seals to ``a`` only, and can add the others."""
    with client_for(services, recipients=("a",)) as made:
        yield made


def stream_of(kms: Kms, plaintext: bytes = PLAIN) -> bytes:
    """A sealed stream."""
    sealed = io.BytesIO()
    with kms.sealing(sealed, CONTEXT) as writer:
        writer.write(plaintext)
    return sealed.getvalue()


@pytest.fixture
def path(tmp_path: Path, kms: Kms) -> Path:
    """A file with a stream of some MiB in it, alone in its folder."""
    file = tmp_path / "sealed"
    file.write_bytes(stream_of(kms))
    return file


def body_of(blob: bytes) -> bytes:
    """What follows the capsule."""
    return blob[Kms.inspect(blob).capsule_bytes :]


def capsule_of(blob: bytes) -> Capsule:
    """What stands in front of it."""
    return parse_capsule(blob[: Kms.inspect(blob).capsule_bytes])


def holders(path: Path) -> str:
    """The services that hold the file's key."""
    uris = [recipient.key_uri for recipient in capsule_of(path.read_bytes()).recipients]
    return "".join(sorted(uri.removeprefix("memory://")[0] for uri in uris))


def opens(stores: Mapping[str, MemoryStore], name: str, path: Path) -> bool:
    """Whether a reader that has nothing but this one service gets at the content."""
    with client_for(on(stores, name)) as reader:
        try:
            return reader.open(path.read_bytes(), CONTEXT) == PLAIN
        except IntegrityError:
            return False


def forbidden(*_: object) -> NoReturn:
    """Stands for what must not be called."""
    raise AssertionError("the body was touched")


# --- the body stays ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["message", "stream"])
def test_the_body_stays_byte_for_byte(
    kms: Kms, stores: dict[str, MemoryStore], tmp_path: Path, form: str
) -> None:
    """Some MiB of either form; only the capsule is another one."""
    path = tmp_path / "sealed"
    path.write_bytes(kms.seal(PLAIN, CONTEXT) if form == "message" else stream_of(kms))
    before = path.read_bytes()
    assert kms.rewrap_file(path, add=["b", "c"]) is True
    after = path.read_bytes()
    assert body_of(after) == body_of(before)
    assert capsule_of(after).generation == 1
    assert holders(path) == "abc"
    assert all(opens(stores, name, path) for name in "abc")
    assert [each.name for each in tmp_path.iterdir()] == ["sealed"]


def test_only_those_who_stay_open_after_a_removal(
    kms: Kms, stores: dict[str, MemoryStore], path: Path
) -> None:
    """The file moves from one service to another."""
    assert kms.rewrap_file(path, add="b", remove="a", repair=False)
    assert holders(path) == "b"
    assert opens(stores, "b", path)
    assert not opens(stores, "a", path)


def test_the_body_is_not_decrypted(kms: Kms, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of a body is even derived."""
    monkeypatch.setattr(Keys, "stream", forbidden)
    monkeypatch.setattr(Keys, "one_shot", forbidden)
    assert kms.rewrap_file(path, add="b")
    with pytest.raises(AssertionError, match="touched"):
        kms.open(path.read_bytes(), CONTEXT)


def test_a_body_that_would_not_open_is_rewrapped_all_the_same(kms: Kms, path: Path) -> None:
    """What is wrong with it is for the reader to find out."""
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    assert kms.rewrap_file(path, add="b")
    assert body_of(path.read_bytes()) == body_of(bytes(blob))


def test_a_large_file_needs_little_memory(kms: Kms, tmp_path: Path) -> None:
    """Its body goes through a buffer; a capsule may stand in front of anything."""
    path = tmp_path / "sealed"
    head = stream_of(kms, b"")
    path.write_bytes(head)
    os.truncate(path, 64 * MIB)
    tracemalloc.start()
    try:
        assert kms.rewrap_file(path, add="b")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB
    assert path.stat().st_size > 64 * MIB
    with path.open("rb") as file:
        start = file.read(MIB)
    assert body_of(start)[: len(body_of(head))] == body_of(head)


def test_with_nothing_to_do_the_file_stays(kms: Kms, path: Path) -> None:
    """Not even replaced by a copy of itself."""
    before = path.stat()
    assert kms.rewrap_file(path) is False
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_mode_and_links_stay(kms: Kms, path: Path) -> None:
    """It is the same file to everybody who uses it."""
    path.chmod(0o640)
    link = path.with_name("link")
    link.symlink_to(path)
    assert kms.rewrap_file(str(link), add="b")
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert holders(path) == "ab"


# --- room ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [{"policy": "any"}, {"policy": "2 of 3", "min_recipients": 2}],
    ids=["any", "threshold"],
)
def test_a_repair_keeps_the_length(
    services: dict[str, Faulty], tmp_path: Path, policy: dict[str, Any]
) -> None:
    """The capsule of a degraded file has room for whoever is missing."""
    path = tmp_path / "sealed"
    services["b"].always("encrypt", DOWN)
    with client_for(services, **policy) as kms:
        path.write_bytes(stream_of(kms))
        services["b"].heal()
        before = path.read_bytes()
        assert kms.rewrap_file(path)
        after = path.read_bytes()
        assert kms.open(after, CONTEXT) == PLAIN
    assert holders(path) == "abc"
    assert len(after) == len(before)
    assert body_of(after) == body_of(before)


def test_what_a_removal_frees_is_kept_as_room(kms: Kms, path: Path) -> None:
    """So the next addition keeps the length too."""
    kms.rewrap_file(path, add=["b", "c"])
    size = path.stat().st_size
    for change in ({"remove": "b"}, {"add": "b"}, {"remove": ["b", "c"]}, {"add": "c"}):
        assert kms.rewrap_file(path, **change)
        assert path.stat().st_size == size
    assert holders(path) == "ac"
    assert capsule_of(path.read_bytes()).generation == 5


# --- extensions ----------------------------------------------------------------------------------


def with_extensions(kms: Kms, path: Path, *extensions: tuple[int, bytes]) -> None:
    """Let a later version of the format have written the capsule."""
    blob = path.read_bytes()
    capsule = blob[: Kms.inspect(blob).capsule_bytes]
    keys = unlock(capsule, kms._unwrap)
    newer = evolve(parse_capsule(capsule), unknown=extensions, created=7)
    path.write_bytes(sign_capsule(newer, keys) + body_of(blob))


def test_unknown_extensions_stay_unless_they_ask_to_be_dropped(
    kms: Kms, stores: dict[str, MemoryStore], path: Path
) -> None:
    """Bit 0x4000 says that a rewrap which does not understand it makes it untrue."""
    kept, dropped = ((0x0004, b"kept"), (0x3FFF, b"")), ((0x4003, b"stale"), (0x7FFF, b""))
    with_extensions(kms, path, *kept, *dropped)
    assert kms.rewrap_file(path) is False
    assert capsule_of(path.read_bytes()).unknown == (*kept, *dropped)
    assert kms.rewrap_file(path, add="b")
    capsule = capsule_of(path.read_bytes())
    assert (capsule.unknown, capsule.created) == (kept, 7)
    assert opens(stores, "b", path)


# --- what is no such file ------------------------------------------------------------------------


def test_a_compact_file_has_no_capsule_to_change(
    services: dict[str, Faulty], tmp_path: Path
) -> None:
    """Its capsule is in the store."""
    path = tmp_path / "sealed"
    with client_for(services, options={"capsules": MemoryCapsules()}) as kms:
        path.write_bytes(kms.seal(b"secret", inline=False))
        with pytest.raises(FormatError, match="compact"):
            kms.rewrap_file(path, remove="b")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, "capsule"])
def test_what_is_cut_short_is_no_envelope(kms: Kms, path: Path, keep: int | str) -> None:
    """Neither is a capsule without a body; the file stays as it is."""
    blob = path.read_bytes()
    cut = blob[: Kms.inspect(blob).capsule_bytes if isinstance(keep, str) else keep]
    path.write_bytes(cut)
    with pytest.raises(FormatError):
        kms.rewrap_file(path, add="b")
    assert path.read_bytes() == cut


def test_what_follows_the_capsule_must_be_a_body(kms: Kms, path: Path) -> None:
    """As for ``rewrap``: with anything else something went wrong before."""
    blob = path.read_bytes()
    path.write_bytes(blob[: Kms.inspect(blob).capsule_bytes] + b"something else")
    with pytest.raises(FormatError):
        kms.rewrap(path.read_bytes(), add="b")
    with pytest.raises(FormatError):
        kms.rewrap_file(path, add="b")


def test_an_altered_capsule_is_not_confirmed(kms: Kms, path: Path) -> None:
    """A new signature would make it genuine."""
    blob = bytearray(path.read_bytes())
    blob[11] ^= 1
    path.write_bytes(blob)
    with pytest.raises(IntegrityError):
        kms.rewrap_file(path, add="b")
    assert path.read_bytes() == blob


def test_a_file_that_is_not_there(kms: Kms, tmp_path: Path) -> None:
    """The operating system's own error says it best; nothing is made."""
    with pytest.raises(FileNotFoundError):
        kms.rewrap_file(tmp_path / "nowhere", add="b")
    assert list(tmp_path.iterdir()) == []


# --- interrupted ---------------------------------------------------------------------------------


def test_a_rewrap_that_fails_leaves_the_file(
    kms: Kms, services: dict[str, Faulty], path: Path
) -> None:
    """A service that is down, and a request that makes no sense."""
    before = path.read_bytes()
    services["b"].always("encrypt", DOWN)
    with pytest.raises(AllInstancesFailed):
        kms.rewrap_file(path, add="b", remove="a")
    with pytest.raises(InvalidRequest):
        kms.rewrap_file(path, remove="a", repair=False)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["sealed"]


@pytest.mark.parametrize(
    "step",
    [(os, "pread"), (os, "fsync"), (Path, "replace")],
    ids=["at the last look", "written", "named"],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_rewrap_leaves_the_file(
    kms: Kms,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: tuple[Any, str],
    error: type[BaseException],
) -> None:
    """At every step up to the last, which is one rename; and it can be done again."""
    before = path.read_bytes()

    def interrupted(*_: object, **__: object) -> NoReturn:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*step, interrupted)
        with pytest.raises(error):
            kms.rewrap_file(path, add="b")
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["sealed"]
    assert kms.rewrap_file(path, add="b")


@pytest.mark.parametrize("lacking", [1, 5, MIB // 2, MIB, 2 * MIB + 5, 3 * MIB])
def test_a_full_disk_leaves_the_file(
    stores: dict[str, MemoryStore], path: Path, lacking: int
) -> None:
    """Also where only the last part did not fit: a short write is no success."""
    before = path.read_bytes()

    def without_room() -> None:
        with client_for(on(stores), recipients=("a",)) as kms:
            size = len(kms.rewrap(before, add="b"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - lacking, size - lacking))
            with pytest.raises(OSError, match="File too large"):
                kms.rewrap_file(path, add="b")

    assert in_child(without_room) == ""
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["sealed"]


# --- others at work ------------------------------------------------------------------------------


def interfering(meanwhile: list[Callable[[], object]]) -> Mapping[str, ModuleType]:
    """A plugin that lets somebody else in while a wrap is being made."""

    @hookimpl(wrapper=True)
    def encrypt() -> Any:
        if meanwhile:
            meanwhile.pop(0)()
        return (yield)

    return {"meanwhile": module("meanwhile", encrypt=encrypt)}


def test_no_addition_is_lost(
    kms: Kms, services: dict[str, Faulty], stores: dict[str, MemoryStore], path: Path
) -> None:
    """Whoever comes second carries out the intent on what the first has written."""
    meanwhile: list[Callable[[], object]] = [lambda: kms.rewrap_file(path, add="c")]
    before = services["b"].count("encrypt")
    with client_for(services, modules=interfering(meanwhile), recipients=("a",)) as slow:
        assert slow.rewrap_file(path, add="b")
    assert services["b"].count("encrypt") - before == 2
    assert holders(path) == "abc"
    assert capsule_of(path.read_bytes()).generation == 2
    assert all(opens(stores, name, path) for name in "abc")


def test_no_removal_is_undone(
    kms: Kms, services: dict[str, Faulty], stores: dict[str, MemoryStore], path: Path
) -> None:
    """Nor is it by whoever had read the file before."""
    kms.rewrap_file(path, add="b")
    meanwhile: list[Callable[[], object]] = [lambda: kms.rewrap_file(path, remove="b")]
    with client_for(services, modules=interfering(meanwhile), recipients=("a",)) as slow:
        assert slow.rewrap_file(path, add="c")
    assert holders(path) == "ac"
    assert not opens(stores, "b", path)


def test_another_file_in_its_place_is_not_overwritten(
    kms: Kms, services: dict[str, Faulty], path: Path
) -> None:
    """Newly sealed meanwhile, by a program that knows no locks: that is what is rewrapped."""
    newer = kms.seal(b"newer", CONTEXT)

    def replace() -> None:
        path.with_name("new").write_bytes(newer)
        path.with_name("new").replace(path)

    with client_for(services, modules=interfering([replace]), recipients=("a",)) as slow:
        assert slow.rewrap_file(path, add="b")
        assert slow.open(path.read_bytes(), CONTEXT) == b"newer"
    assert holders(path) == "ab"


def test_a_capsule_written_in_place_is_not_overwritten(
    kms: Kms, services: dict[str, Faulty], path: Path
) -> None:
    """Same file, same length, other recipients."""
    kms.rewrap_file(path, add=["b", "c"])
    blob = path.read_bytes()
    other = kms.rewrap(blob, remove="b")
    assert len(other) == len(blob)

    with client_for(
        services, modules=interfering([lambda: path.write_bytes(other)]), recipients=("a",)
    ) as slow:
        assert slow.rewrap_file(path, add="a")
    assert holders(path) == "ac"


def test_whoever_loses_again_and_again_is_told(
    kms: Kms, services: dict[str, Faulty], path: Path
) -> None:
    """The file is the others'."""
    others: list[Callable[[], object]] = [lambda: kms.rewrap_file(path, add="c")] * 20
    with (
        client_for(services, modules=interfering(others), recipients=("a",)) as slow,
        pytest.raises(RewrapConflict, match="was replaced by somebody else meanwhile"),
    ):
        slow.rewrap_file(path, add="b")
    assert holders(path) == "ac"
    assert [each.name for each in path.parent.iterdir()] == ["sealed"]


def test_two_processes_lose_nothing(
    kms: Kms, stores: dict[str, MemoryStore], tmp_path: Path
) -> None:
    """Each adds its recipient to the same files, started at once, and takes another one away."""
    paths = [tmp_path / f"sealed{number}" for number in range(10)]
    blob = kms.rewrap(stream_of(kms), add="c")
    for path in paths:
        path.write_bytes(blob)
    waiting, go = os.pipe()

    def rewrap_all(change: dict[str, str]) -> Callable[[], None]:
        def work() -> None:
            with client_for(on(stores), recipients=("a",)) as mine:
                os.read(waiting, 1)
                for path in paths:
                    mine.rewrap_file(path, **change)  # type: ignore[arg-type]

        return work

    with ThreadPoolExecutor(2) as pool:
        said = [
            pool.submit(in_child, rewrap_all(change)) for change in ({"add": "b"}, {"remove": "c"})
        ]
        os.write(go, b"go")
        assert [each.result() for each in said] == ["", ""]
    os.close(waiting)
    os.close(go)
    for path in paths:
        assert holders(path) == "ab"
        assert capsule_of(path.read_bytes()).generation == 3
        assert kms.open(path.read_bytes(), CONTEXT) == PLAIN
    assert sorted(tmp_path.iterdir()) == sorted(paths)


# --- killed --------------------------------------------------------------------------------------

KILLS = 20
STEPS = 400  # some rewraps' worth


@contextmanager
def child(work: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """A forked process that writes into a pipe; its id, and the end to read from."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(sending)
        finally:
            os._exit(1)
    os.close(sending)
    try:
        yield pid, receiving
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(receiving)


def step_by_step(sending: int) -> Callable[[FrameType, str, object], None]:
    """A profiler that tells of every call within the modules that write files."""

    def tell(frame: FrameType, event: str, _: object) -> None:
        if event in {"call", "c_call"} and frame.f_code.co_filename.endswith(
            ("kms_core/rewrap.py", "kms_core/files.py")
        ):
            os.write(sending, b".")

    return tell


def read_exactly(descriptor: int, size: int) -> bytes:
    """So many bytes, or those before the other end was closed."""
    read = b""
    while len(read) < size and (more := os.read(descriptor, size - len(read))):
        read += more
    return read


def test_killed_at_any_moment_it_leaves_the_old_file_or_the_new(
    kms: Kms, stores: dict[str, MemoryStore], path: Path
) -> None:
    """Twenty times somewhere in the middle: the file is whole, opens, and the next goes on."""
    body = body_of(path.read_bytes())
    moments = random.Random(20)  # noqa: S311  that they can be repeated is the point

    def rewrap_for_ever(sending: int) -> None:
        with client_for(on(stores), recipients=("a",)) as mine:
            sys.setprofile(step_by_step(sending))
            while True:
                mine.rewrap_file(path, add="b")
                mine.rewrap_file(path, remove="b")

    generation = 0
    for _ in range(KILLS):
        if holders(path) == "ab":
            assert kms.rewrap_file(path, remove="b")
        steps = moments.randrange(1, STEPS)
        with child(rewrap_for_ever) as (_pid, receiving):
            assert len(read_exactly(receiving, steps)) == steps
        blob = path.read_bytes()
        assert body_of(blob) == body
        assert holders(path) in {"a", "ab"}
        assert kms.open(blob, CONTEXT) == PLAIN
        assert capsule_of(blob).generation >= generation
        generation = capsule_of(blob).generation
    assert generation > KILLS
