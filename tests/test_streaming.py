"""Streams and files through the client: with services, degraded, and when things go wrong."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kms_core import (
    AllInstancesFailed,
    FormatError,
    IntegrityError,
    InvalidRequest,
    KeyNotFound,
    Kms,
    PolicyDenied,
    Unavailable,
    parallel,
)
from kms_core.capsules import MemoryCapsules
from kms_core.testing import Faulty, raising
from tests.support import Events, OtherProvider, client_for, service

CONTEXT = {"tenant": "42", "row": "7"}
DOWN = raising(Unavailable, "down")
P = 4096


def pattern(size: int) -> bytes:
    """Plaintext in which no two segments are alike."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


@pytest.fixture
def services() -> dict[str, Faulty]:
    """Three independent services, two of one kind and one of another."""
    return {"a": service("a"), "b": service("b"), "c": service("c", kind=OtherProvider)}


@pytest.fixture
def events() -> Events:
    """What the client tells."""
    return Events()


@pytest.fixture
def kms(services: dict[str, Faulty], events: Events) -> Iterator[Kms]:
    """A client of these."""
    with client_for(services, modules={"recorder": events.module}) as made:
        yield made


def take_down(services: dict[str, Faulty], *names: str) -> None:
    """No hook of these answers."""
    for name in names:
        for hook in ("encrypt", "decrypt"):
            services[name].always(hook, DOWN)


def bring_back(services: dict[str, Faulty], *names: str) -> None:
    """They do again."""
    for name in names:
        services[name].heal()


def sealed_stream(kms: Kms, plaintext: bytes, context: Any = None, **options: Any) -> bytes:
    """A stream in memory."""
    sealed = io.BytesIO()
    with kms.sealing(sealed, context, **options) as writer:
        writer.write(plaintext)
    return sealed.getvalue()


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, P - 1, P, P + 1, 3 * P + 100])
@pytest.mark.parametrize("context", [None, CONTEXT])
@pytest.mark.parametrize("stored", [None, {}, {"file": "a"}])
def test_what_was_sealed_as_a_stream_opens(
    kms: Kms, size: int, context: dict[str, str] | None, stored: dict[str, str] | None
) -> None:
    """As a stream and at once, with the context it was sealed with."""
    plaintext = pattern(size)

    sealed = sealed_stream(kms, plaintext, context, stored_context=stored, segment_bytes=P)

    with kms.opening(io.BytesIO(sealed), context) as reader:
        assert reader.read() == plaintext
    assert kms.open(sealed, context) == plaintext
    info = kms.inspect(sealed)
    assert (info.form, info.inline, info.segment_bytes) == ("stream", True, P)
    assert info.stored_context == stored
    assert len(info.recipients) == 3


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_each_service_alone_opens_a_stream(
    kms: Kms, services: dict[str, Faulty], name: str
) -> None:
    """While the two others are down."""
    sealed = sealed_stream(kms, b"data", CONTEXT)
    take_down(services, *set(services) - {name})

    with kms.opening(io.BytesIO(sealed), CONTEXT) as reader:
        assert reader.read() == b"data"


def test_the_services_see_one_call_for_a_stream_of_any_length(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """When it is started and when it is opened; segments are nobody's business."""
    sealed = sealed_stream(kms, pattern(20 * P), segment_bytes=P)
    with kms.opening(io.BytesIO(sealed)) as reader:
        reader.seek(10 * P)
        reader.read()

    assert [made.count("encrypt") for made in services.values()] == [1, 1, 1]
    assert sum(made.count("decrypt") for made in services.values()) == 1


def test_a_stream_can_be_read_anywhere(kms: Kms) -> None:
    """Seeking is as on the plaintext, also where the envelope does not start at 0."""
    plaintext = pattern(5 * P + 9)
    source = io.BytesIO(b"before" + sealed_stream(kms, plaintext, segment_bytes=P))
    source.seek(6)

    with kms.opening(source) as reader:
        assert reader.seek(-9, io.SEEK_END) == 5 * P
        assert reader.read() == plaintext[-9:]
        assert reader.seek(P - 1) == P - 1
        assert reader.read(2) == plaintext[P - 1 : P + 1]


def test_a_stream_left_through_an_exception_does_not_open(kms: Kms) -> None:
    """As a stream or at once."""
    sealed = io.BytesIO()
    with pytest.raises(ZeroDivisionError):  # noqa: SIM117, PT012
        with kms.sealing(sealed) as writer:
            writer.write(b"data")
            _ = 1 // 0

    with pytest.raises(IntegrityError):
        kms.open(sealed.getvalue())
    with pytest.raises(IntegrityError), kms.opening(io.BytesIO(sealed.getvalue())) as reader:
        reader.read()


@pytest.mark.parametrize("context", [None, {}, {"tenant": "42"}, {**CONTEXT, "more": "x"}])
def test_another_context_opens_no_stream(kms: Kms, context: dict[str, str] | None) -> None:
    """Refused before a reader is handed out."""
    sealed = sealed_stream(kms, b"data", CONTEXT)

    with pytest.raises(IntegrityError):
        kms.opening(io.BytesIO(sealed), context)
    with pytest.raises(IntegrityError):
        kms.open(sealed, context)


def test_another_tenants_stream_is_refused_unasked(services: dict[str, Faulty]) -> None:
    """The scope is compared before any service is asked."""
    with client_for(services, key_context=("tenant",)) as kms:
        sealed = sealed_stream(kms, b"data", CONTEXT)
        with pytest.raises(IntegrityError):
            kms.opening(io.BytesIO(sealed), {**CONTEXT, "tenant": "43"})
        assert not any(made.count("decrypt") for made in services.values())
        assert kms.opening(io.BytesIO(sealed), CONTEXT).read() == b"data"


@pytest.mark.parametrize("size", [-P, 0, 1, 2048, 4095, 5000, 1 << 23])
def test_segments_are_powers_of_two_within_bounds(kms: Kms, size: int) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidRequest):
        kms.sealing(io.BytesIO(), segment_bytes=size)


def test_a_segment_size_out_of_bounds_is_refused_first(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """Before any service is asked, and before anything is written."""
    sealed = io.BytesIO()
    with pytest.raises(InvalidRequest):
        kms.sealing(sealed, segment_bytes=2048)

    assert sealed.getvalue() == b""
    assert not any(made.calls for made in services.values())


@pytest.mark.parametrize("log2", range(12, 23))
def test_all_other_segment_sizes_work(kms: Kms, log2: int) -> None:
    """4 KiB to 4 MiB."""
    plaintext = bytes((1 << log2) + 1)

    assert kms.open(sealed_stream(kms, plaintext, segment_bytes=1 << log2)) == plaintext


def test_memory_is_bounded(kms: Kms, tmp_path: Path) -> None:
    """A stream of 24 MiB in segments of 64 KiB takes no more than a few of them."""
    path = tmp_path / "sealed"
    chunk = bytes(1 << 16)
    tracemalloc.start()
    try:
        with path.open("wb") as out, kms.sealing(out, segment_bytes=1 << 16) as writer:
            for _ in range(24 << 4):
                writer.write(chunk)
        total = 0
        with path.open("rb") as source, kms.opening(source) as reader:
            while part := reader.read(1 << 16):
                total += len(part)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert total == 24 << 20
    assert peak < 4 << 20


# --- any form ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [None, {"file": "a"}])
def test_a_message_can_be_read_like_a_stream(kms: Kms, stored: dict[str, str] | None) -> None:
    """Whoever reads need not know how it was sealed."""
    sealed = kms.seal(b"message", CONTEXT, stored_context=stored)

    with kms.opening(io.BytesIO(sealed), CONTEXT) as reader:
        assert reader.seekable()
        assert reader.read() == b"message"
    with pytest.raises(IntegrityError):
        kms.opening(io.BytesIO(sealed[:-1]), CONTEXT)


def test_a_message_is_read_whole_from_a_source_that_gives_less_at_a_time(kms: Kms) -> None:
    """Pipes do: here each read gives a piece of it."""
    plaintext = pattern(200_000)
    sealed = kms.seal(plaintext)
    receiving, sending = os.pipe()

    def send() -> None:
        with open(sending, "wb", buffering=0) as out:  # noqa: PTH123
            view = memoryview(sealed)
            while view:
                view = view[out.write(view[:5000]) :]

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with (
            open(receiving, "rb", buffering=0) as source,  # noqa: PTH123
            kms.opening(source) as reader,
        ):
            assert reader.read() == plaintext
    finally:
        sender.join()


def test_text_is_for_open_only(kms: Kms) -> None:
    """A stream of base64url text is no envelope, and says so."""
    text = kms.seal(b"data", armor=True)

    with pytest.raises(FormatError, match="not a kms_core envelope"):
        kms.opening(io.BytesIO(text.encode()))
    assert kms.open(text) == b"data"


@pytest.mark.parametrize("junk", [b"", b"x", b"\xc1", b"plain text of no format", bytes(1000)])
def test_what_is_no_envelope_is_refused_unasked(
    kms: Kms, services: dict[str, Faulty], junk: bytes
) -> None:
    """Without a call to any service."""
    with pytest.raises(FormatError):
        kms.opening(io.BytesIO(junk))
    assert not any(made.calls for made in services.values())


def test_compact_streams_leave_their_capsule_in_the_store(services: dict[str, Faulty]) -> None:
    """What is written names its key only."""
    store = MemoryCapsules()
    with client_for(services, options={"capsules": store}) as kms:
        compact = sealed_stream(kms, pattern(2 * P), CONTEXT, inline=False, segment_bytes=P)

        info = kms.inspect(compact)
        assert (info.form, info.inline, info.recipients) == ("stream", False, ())
        assert store.get(bytes.fromhex(info.key_id)) is not None
        assert kms.opening(io.BytesIO(compact), CONTEXT).read() == pattern(2 * P)
        assert kms.open(compact, CONTEXT) == pattern(2 * P)
    with (
        client_for(services, options={"capsules": MemoryCapsules()}) as other,
        pytest.raises(KeyNotFound),
    ):
        other.opening(io.BytesIO(compact), CONTEXT)


def test_without_a_store_there_are_no_compact_streams(kms: Kms, tmp_path: Path) -> None:
    """Nothing is written."""
    sealed = io.BytesIO()
    with pytest.raises(InvalidRequest, match="capsule store"):
        kms.sealing(sealed, inline=False)
    (tmp_path / "plain").write_bytes(b"data")
    with pytest.raises(InvalidRequest, match="capsule store"):
        kms.seal_file(tmp_path / "plain", tmp_path / "sealed", inline=False)

    assert sealed.getvalue() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_streams_under_a_threshold_need_as_many_services(services: dict[str, Faulty]) -> None:
    """Two of three open, one does not."""
    with client_for(services, policy="2 of 3") as kms:
        sealed = sealed_stream(kms, b"data", CONTEXT)
        take_down(services, "a")
        assert kms.opening(io.BytesIO(sealed), CONTEXT).read() == b"data"
        take_down(services, "b")
        with pytest.raises(AllInstancesFailed):
            kms.opening(io.BytesIO(sealed), CONTEXT)


def test_the_readers_policy_holds_for_streams(kms: Kms, services: dict[str, Faulty]) -> None:
    """Who asks for a threshold opens no stream without one."""
    sealed = sealed_stream(kms, b"data")
    with (
        client_for(services, policy="2 of 3", min_threshold=2) as strict,
        pytest.raises(PolicyDenied),
    ):
        strict.opening(io.BytesIO(sealed))


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file ``plain`` of some segments."""
    (tmp_path / "plain").write_bytes(pattern(600_000))
    return tmp_path


@pytest.fixture(params=[True, False], ids=["two threads", "in order"])
def two_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any size on two threads, and in order."""
    monkeypatch.setattr(parallel, "PARALLEL_BYTES", 0 if request.param else 1 << 60)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, 600_000])
@pytest.mark.usefixtures("two_threads")
def test_a_sealed_file_opens(kms: Kms, folder: Path, size: int) -> None:
    """As a file, as a stream and at once; progress sums up to the size of the plaintext."""
    plaintext = pattern(size)
    (folder / "plain").write_bytes(plaintext)
    sealed_bytes: list[int] = []
    opened_bytes: list[int] = []

    kms.seal_file(
        folder / "plain",
        folder / "sealed",
        CONTEXT,
        stored_context={"file": "a"},
        progress=sealed_bytes.append,
    )
    kms.open_file(
        str(folder / "sealed"), str(folder / "opened"), CONTEXT, progress=opened_bytes.append
    )

    assert (folder / "opened").read_bytes() == plaintext
    assert sum(sealed_bytes) == sum(opened_bytes) == size
    sealed = (folder / "sealed").read_bytes()
    assert kms.open(sealed, CONTEXT) == plaintext
    assert kms.inspect(sealed).stored_context == {"file": "a"}
    with (folder / "sealed").open("rb") as source, kms.opening(source, CONTEXT) as reader:
        assert reader.read() == plaintext
    assert names(folder) == ["opened", "plain", "sealed"]


def test_files_of_every_form_open(services: dict[str, Faulty], folder: Path) -> None:
    """Messages, streams and compact ones."""
    with client_for(services, options={"capsules": MemoryCapsules()}) as kms:
        forms = [
            kms.seal(b"data", CONTEXT),
            kms.seal(b"data", CONTEXT, inline=False),
            kms.seal(b"data", CONTEXT, stored_context={"file": "a"}),
            sealed_stream(kms, b"data", CONTEXT),
            sealed_stream(kms, b"data", CONTEXT, inline=False),
        ]
        for sealed in forms:
            (folder / "sealed").write_bytes(sealed)
            kms.open_file(folder / "sealed", folder / "opened", CONTEXT)
            assert (folder / "opened").read_bytes() == b"data"
            (folder / "opened").unlink()
        kms.seal_file(folder / "plain", folder / "sealed", CONTEXT, inline=False)
        kms.open_file(folder / "sealed", folder / "opened", CONTEXT)
        assert (folder / "opened").read_bytes() == pattern(600_000)
        assert not kms.inspect((folder / "sealed").read_bytes()).inline


def test_a_file_can_take_the_place_of_its_source(kms: Kms, folder: Path) -> None:
    """There and back."""
    kms.seal_file(folder / "plain", folder / "plain")
    assert kms.is_sealed((folder / "plain").read_bytes())
    kms.open_file(folder / "plain", folder / "plain")

    assert (folder / "plain").read_bytes() == pattern(600_000)
    assert names(folder) == ["plain"]


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_opened_files_are_their_owners_alone(kms: Kms, folder: Path) -> None:
    """Unless there was a file with another mode."""
    before = os.umask(0o022)
    try:
        kms.seal_file(folder / "plain", folder / "sealed")
        kms.open_file(folder / "sealed", folder / "opened")
        (folder / "shared").touch(0o644)
        kms.open_file(folder / "sealed", folder / "shared")
    finally:
        os.umask(before)

    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in names(folder)}
    assert modes == {"opened": 0o600, "plain": 0o644, "sealed": 0o644, "shared": 0o644}


def flip(sealed: bytearray) -> bytearray:
    """In the last segment but one."""
    sealed[-(1 << 18)] ^= 1
    return sealed


ALTERATIONS: dict[str, Callable[[bytearray], bytes | bytearray]] = {
    "flipped": flip,
    "cut": lambda sealed: sealed[:-1],
    "cut at a boundary": lambda sealed: sealed[: -(600_000 % (1 << 18)) - 28],
    "longer": lambda sealed: sealed + b"\x00",
    "only a capsule and a header": lambda sealed: sealed[:-600_000],
    "empty": lambda sealed: b"",
    "no envelope": lambda sealed: sealed[5:],
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.usefixtures("two_threads")
def test_an_altered_file_leaves_nothing(
    kms: Kms,
    folder: Path,
    alteration: str,
    exists: bool,  # noqa: FBT001
) -> None:
    """What was at the destination stays; nothing else appears."""
    kms.seal_file(folder / "plain", folder / "sealed")
    altered = ALTERATIONS[alteration](bytearray((folder / "sealed").read_bytes()))
    (folder / "sealed").write_bytes(altered)
    if exists:
        (folder / "opened").write_bytes(b"old")

    with pytest.raises((IntegrityError, FormatError)):
        kms.open_file(folder / "sealed", folder / "opened")

    assert names(folder) == ["opened", "plain", "sealed"] if exists else ["plain", "sealed"]
    if exists:
        assert (folder / "opened").read_bytes() == b"old"


@pytest.mark.parametrize("context", [None, {"tenant": "43"}])
def test_another_context_opens_no_file(
    kms: Kms, folder: Path, context: dict[str, str] | None
) -> None:
    """And leaves none."""
    kms.seal_file(folder / "plain", folder / "sealed", {"tenant": "42"})

    with pytest.raises(IntegrityError):
        kms.open_file(folder / "sealed", folder / "opened", context)

    assert names(folder) == ["plain", "sealed"]


def test_a_missing_source_is_an_error(
    kms: Kms, services: dict[str, Faulty], events: Events, tmp_path: Path
) -> None:
    """Of the operating system's; no service is asked, and nothing appears."""
    for work in (kms.seal_file, kms.open_file):
        with pytest.raises(FileNotFoundError):
            work(tmp_path / "missing", tmp_path / "new")

    assert names(tmp_path) == []
    assert not any(made.calls for made in services.values())
    assert events.last("seal").outcome == "os_error"


def test_a_destination_that_cannot_be_is_found_out_first(
    kms: Kms, services: dict[str, Faulty], folder: Path
) -> None:
    """Before any service is asked for a key to seal under."""
    with pytest.raises(FileNotFoundError):
        kms.seal_file(folder / "plain", folder / "missing" / "sealed")
    with pytest.raises(FileExistsError):
        kms.seal_file(folder / "plain", folder)

    assert not any(made.calls for made in services.values())


def test_progress_that_fails_ends_it(kms: Kms, folder: Path) -> None:
    """Someone pressed a button: nothing is left."""
    kms.seal_file(folder / "plain", folder / "sealed")

    def cancel(size: int) -> None:
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        kms.seal_file(folder / "plain", folder / "new", progress=cancel)
    with pytest.raises(RuntimeError, match="cancelled"):
        kms.open_file(folder / "sealed", folder / "new", progress=cancel)

    assert names(folder) == ["plain", "sealed"]


# --- degraded ------------------------------------------------------------------------------------


def test_streams_and_files_seal_without_whom_cannot_be_reached(
    kms: Kms, services: dict[str, Faulty], events: Events, folder: Path
) -> None:
    """Who is missing is recorded inside and told; the rest opens."""
    take_down(services, "b")

    sealed = sealed_stream(kms, b"data", CONTEXT)
    assert events.last("seal").outcome == "degraded"
    assert events.last("seal").missing == ("b",)
    kms.seal_file(folder / "plain", folder / "sealed", CONTEXT)
    assert events.last("seal").missing == ("b",)

    for envelope in (sealed, (folder / "sealed").read_bytes()):
        info = kms.inspect(envelope)
        assert info.missing == ("memory://b/default",)
        assert info.degraded
        assert len(info.recipients) == 2
    assert kms.opening(io.BytesIO(sealed), CONTEXT).read() == b"data"
    assert events.last("open").outcome == "ok"


def test_a_degraded_file_is_repaired_and_its_body_stays(
    kms: Kms, services: dict[str, Faulty], folder: Path
) -> None:
    """Afterwards the one that was missing opens it alone."""
    take_down(services, "b")
    kms.seal_file(folder / "plain", folder / "sealed", CONTEXT)
    before = (folder / "sealed").read_bytes()
    bring_back(services, "b")

    assert kms.rewrap_file(folder / "sealed")
    assert not kms.rewrap_file(folder / "sealed")

    after = (folder / "sealed").read_bytes()
    assert len(after) == len(before)  # in the room that was left for it
    body = [hashlib.sha256(one[kms.inspect(one).capsule_bytes :]) for one in (before, after)]
    assert body[0].digest() == body[1].digest()
    take_down(services, "a", "c")
    kms.open_file(folder / "sealed", folder / "opened", CONTEXT)
    assert (folder / "opened").read_bytes() == pattern(600_000)


def test_a_degraded_stream_is_repaired_at_once(kms: Kms, services: dict[str, Faulty]) -> None:
    """As messages are."""
    take_down(services, "b", "c")
    sealed = sealed_stream(kms, pattern(3 * P), CONTEXT, segment_bytes=P)
    bring_back(services, "b", "c")

    whole = kms.rewrap(sealed)

    assert not kms.inspect(whole).degraded
    take_down(services, "a", "b")
    assert kms.opening(io.BytesIO(whole), CONTEXT).read() == pattern(3 * P)


def test_with_too_few_services_nothing_is_written(
    kms: Kms, services: dict[str, Faulty], events: Events, folder: Path
) -> None:
    """Neither to the stream nor to the folder."""
    take_down(services, "a", "b", "c")
    (folder / "old").write_bytes(b"old")
    sealed = io.BytesIO()
    with pytest.raises(AllInstancesFailed):
        kms.sealing(sealed)
    for name in ("new", "old"):
        with pytest.raises(AllInstancesFailed):
            kms.seal_file(folder / "plain", folder / name)

    assert sealed.getvalue() == b""
    assert names(folder) == ["old", "plain"]
    assert (folder / "old").read_bytes() == b"old"
    assert events.last("seal").outcome == "all_instances_failed"


def test_with_no_service_nothing_is_opened(
    kms: Kms, services: dict[str, Faulty], folder: Path
) -> None:
    """And the destination stays as it was."""
    kms.seal_file(folder / "plain", folder / "sealed")
    take_down(services, "a", "b", "c")

    with pytest.raises(AllInstancesFailed):
        kms.open_file(folder / "sealed", folder / "opened")

    assert names(folder) == ["plain", "sealed"]


# --- and the rest --------------------------------------------------------------------------------


def test_a_stream_that_was_opened_outlives_its_client(services: dict[str, Faulty]) -> None:
    """It needs no service any more; new ones are refused."""
    with client_for(services) as kms:
        sealed = sealed_stream(kms, pattern(3 * P), segment_bytes=P)
        reader = kms.opening(io.BytesIO(sealed))

    assert reader.read() == pattern(3 * P)
    for refused in (
        lambda: kms.opening(io.BytesIO(sealed)),
        lambda: kms.sealing(io.BytesIO()),
    ):
        with pytest.raises(InvalidRequest, match="closed"):
            refused()


def test_files_tell_how_they_ended(kms: Kms, events: Events, folder: Path) -> None:
    """One event for each, with the code of the error."""
    kms.seal_file(folder / "plain", folder / "sealed", CONTEXT)
    assert [event.outcome for event in events.of("seal")] == ["ok"]
    kms.open_file(folder / "sealed", folder / "opened", CONTEXT)
    assert [event.outcome for event in events.of("open")] == ["ok"]
    with pytest.raises(IntegrityError):
        kms.open_file(folder / "sealed", folder / "opened")
    assert events.last("open").outcome == "integrity_error"


def test_a_file_found_altered_in_its_body_is_told_as_such(
    kms: Kms, events: Events, folder: Path
) -> None:
    """Whoever watches has to see it."""
    kms.seal_file(folder / "plain", folder / "sealed")
    (folder / "sealed").write_bytes(flip(bytearray((folder / "sealed").read_bytes())))

    with pytest.raises(IntegrityError):
        kms.open_file(folder / "sealed", folder / "opened")

    assert [event.outcome for event in events.of("open")] == ["integrity_error"]
