"""Compact messages: the capsule is kept in a store, and the message only names its key."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import frozen

from kms_core import (
    AllInstancesFailed,
    CapsuleStore,
    FileCapsules,
    IntegrityError,
    InvalidRequest,
    KeyNotFound,
    Kms,
    MemoryCapsules,
    RewrapConflict,
    SqliteCapsules,
    Unavailable,
)
from kms_core.header import Capsule, parse_capsule
from kms_core.testing import Faulty, MemoryProvider, MemorySettings, MemoryStore, raising
from tests.support import Events, client_for, found, providers_module, service

CONTEXT = {"tenant": "42"}
SECRET = b"secret"
DOWN = raising(Unavailable, "down")
GENERATION = slice(8, 12)  # of a capsule's bytes
STORES: dict[str, Callable[[Path], CapsuleStore]] = {
    "memory": lambda _: MemoryCapsules(),
    "files": lambda folder: FileCapsules(folder / "capsules"),
    "sqlite": lambda folder: SqliteCapsules(folder / "capsules.sqlite"),
}


@pytest.fixture(params=STORES)
def capsules(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CapsuleStore]:
    """Each kind of store."""
    store = STORES[request.param](tmp_path)
    yield store
    store.close()


@pytest.fixture
def stores() -> dict[str, MemoryStore]:
    """Three services that outlive their clients."""
    return {name: MemoryStore(name) for name in "abc"}


@pytest.fixture
def services(stores: dict[str, MemoryStore]) -> dict[str, Faulty]:
    """One instance on each."""
    return {name: service(name, store=store) for name, store in stores.items()}


@pytest.fixture
def kms(services: dict[str, Faulty], capsules: CapsuleStore) -> Iterator[Kms]:
    """Seals to all three."""
    with client_with(services, capsules) as made:
        yield made


def client_with(services: Mapping[str, Faulty], capsules: CapsuleStore, **settings: Any) -> Kms:
    """A client whose capsules are kept there."""
    return client_for(services, options={"capsules": capsules}, **settings)


def key_of(compact: bytes) -> bytes:
    """The key id that a compact message names."""
    return bytes.fromhex(Kms.inspect(compact).key_id)


def stored(capsules: CapsuleStore, compact: bytes) -> Capsule:
    """What the store has for it."""
    return parse_capsule(capsules.get(key_of(compact)) or b"")


def holders(capsules: CapsuleStore, compact: bytes) -> str:
    """The services that hold the message's key."""
    uris = [recipient.key_uri for recipient in stored(capsules, compact).recipients]
    return "".join(sorted(uri.removeprefix("memory://")[0] for uri in uris))


# --- sealing and opening -------------------------------------------------------------------------


def test_the_message_is_small_and_its_capsule_is_in_the_store(
    kms: Kms, capsules: CapsuleStore
) -> None:
    """59 bytes over the plaintext, as FORMAT promises; nothing else is stored."""
    compact = kms.seal(SECRET, CONTEXT, inline=False)
    assert len(compact) == len(SECRET) + 59
    info = Kms.inspect(compact)
    assert (info.form, info.inline, info.recipients) == ("message", False, ())
    assert list(capsules.key_ids()) == [key_of(compact)]
    assert stored(capsules, compact).generation == 0
    assert kms.open(compact, CONTEXT) == SECRET


def test_another_client_opens_through_the_same_store(
    kms: Kms, services: dict[str, Faulty], capsules: CapsuleStore
) -> None:
    """All that a reader needs is the store and one of the services."""
    compact = kms.seal(SECRET, CONTEXT, inline=False)
    with client_with({"b": services["b"]}, capsules) as reader:
        assert reader.open(compact, CONTEXT) == SECRET


def test_every_message_has_a_key_of_its_own(kms: Kms, capsules: CapsuleStore) -> None:
    """One capsule each, as no data key is kept; the messages do not open each other's."""
    first, second = (kms.seal(SECRET, inline=False) for _ in range(2))
    assert set(capsules.key_ids()) == {key_of(first), key_of(second)}
    with pytest.raises(IntegrityError):
        kms.open(first[:3] + second[3:19] + first[19:])


def test_text_form_and_stored_context(kms: Kms) -> None:
    """A compact message is as good a message as any."""
    text = kms.seal(SECRET, stored_context=CONTEXT, inline=False, armor=True)
    assert text.startswith("wRoB")
    assert kms.open(text) == SECRET
    assert Kms.inspect(text).stored_context == CONTEXT


def test_streams_and_files(kms: Kms, capsules: CapsuleStore, tmp_path: Path) -> None:
    """Their capsules are kept in the store too."""
    data, stream = bytes(range(256)) * 40, io.BytesIO()
    with kms.sealing(stream, CONTEXT, inline=False, segment_bytes=4096) as writer:
        writer.write(data)
    assert Kms.inspect(stream.getvalue()).inline is False
    assert kms.open(stream.getvalue(), CONTEXT) == data
    with kms.opening(io.BytesIO(stream.getvalue()), CONTEXT) as reader:
        reader.seek(5000)
        assert reader.read(100) == data[5000:5100]

    plain, sealed, opened = tmp_path / "plain", tmp_path / "sealed", tmp_path / "opened"
    plain.write_bytes(data)
    kms.seal_file(plain, sealed, CONTEXT, inline=False)
    kms.open_file(sealed, opened, CONTEXT)
    assert opened.read_bytes() == data
    assert len(list(capsules.key_ids())) == 2


def test_a_message_is_not_returned_before_its_capsule_is_kept(
    services: dict[str, Faulty], tmp_path: Path
) -> None:
    """A store that fails means that nothing was written, also of a stream or a file."""

    class Full(MemoryCapsules):
        def put(self, key_id: bytes, capsule: bytes, *, replaces: bytes | None) -> None:
            raise Unavailable("no space left; make room, then try again")

    plain, sealed, stream = tmp_path / "plain", tmp_path / "sealed", io.BytesIO()
    plain.write_bytes(SECRET)
    with client_with(services, Full()) as kms:
        attempts: list[Callable[[], object]] = [
            lambda: kms.seal(SECRET, inline=False),
            lambda: kms.sealing(stream, inline=False),
            lambda: kms.seal_file(plain, sealed, inline=False),
        ]
        for attempt in attempts:
            with pytest.raises(Unavailable, match="no space left"):
                attempt()
    assert stream.getvalue() == b""
    assert not sealed.exists()


# --- configuration -------------------------------------------------------------------------------


@frozen
class NamedSettings:
    """A service by name, as a configuration file can say it."""

    key: str


@pytest.fixture
def provider(stores: dict[str, MemoryStore]) -> type[MemoryProvider]:
    """A provider whose key is the name of its store."""

    class Named(MemoryProvider):
        settings: ClassVar[type[Any]] = NamedSettings

        def __init__(self, settings: NamedSettings) -> None:
            store = stores.setdefault(settings.key, MemoryStore(settings.key, keys=(settings.key,)))
            super().__init__(MemorySettings(settings.key, store))

    return Named


@pytest.mark.parametrize(
    ("place", "is_there"),
    [
        ("capsules", Path.is_dir),
        ("capsules.sqlite", Path.is_file),
        ("capsules.db", Path.is_file),
        ("capsules.sqlite3", Path.is_file),
    ],
)
def test_the_configuration_names_the_store(
    provider: type[MemoryProvider], tmp_path: Path, place: str, is_there: Callable[[Path], bool]
) -> None:
    """A folder, or a database by its suffix, beside the file; it outlives the client."""
    config = tmp_path / "kms.toml"
    config.write_text(
        f'[instances.x]\nprovider = "memory"\nkey = "x"\n[envelope]\ncapsules = "{place}"\n'
    )
    plugins = [found("memory", providers_module(provider))]
    with Kms.from_config(config, plugins=plugins) as writer:
        compact = writer.seal(SECRET, CONTEXT, inline=False)
    assert is_there(tmp_path / place)
    with Kms.from_config(config, plugins=plugins) as reader:
        assert reader.open(compact, CONTEXT) == SECRET


def test_what_is_passed_goes_before_what_is_configured(
    services: dict[str, Faulty], tmp_path: Path
) -> None:
    """Explicit beats configured; the configured one is not even made."""
    passed, place = MemoryCapsules(), tmp_path / "capsules"
    with client_for(services, options={"capsules": passed}, capsules=place) as kms:
        compact = kms.seal(SECRET, inline=False)
    assert list(passed.key_ids()) == [key_of(compact)]
    assert not place.exists()


def test_an_empty_store_is_a_store(services: dict[str, Faulty]) -> None:
    """Somebody else's may well have a length."""

    class Counted(MemoryCapsules):
        def __len__(self) -> int:
            return len(list(self.key_ids()))

    counted = Counted()
    with client_with(services, counted) as kms:
        kms.seal(SECRET, inline=False)
    assert len(counted) == 1


def test_without_a_store_there_are_no_compact_messages(
    services: dict[str, Faulty], kms: Kms, tmp_path: Path
) -> None:
    """The error says what to set, whatever was asked; what is inline needs no store."""
    compact, path = kms.seal(SECRET, inline=False), tmp_path / "plain"
    path.write_bytes(SECRET)
    with client_for(services) as without:
        attempts: list[Callable[[], object]] = [
            lambda: without.seal(SECRET, inline=False),
            lambda: without.sealing(io.BytesIO(), inline=False),
            lambda: without.seal_file(path, tmp_path / "sealed", inline=False),
            lambda: without.open(compact),
            lambda: without.opening(io.BytesIO(compact)),
            lambda: without.rewrap(compact),
        ]
        for attempt in attempts:
            with pytest.raises(InvalidRequest, match=r"set envelope\.capsules, or pass capsules="):
                attempt()
        assert without.open(without.seal(SECRET)) == SECRET
    assert not (tmp_path / "sealed").exists()


# --- what the store answers ----------------------------------------------------------------------


def test_an_unknown_key_is_not_found(kms: Kms, services: dict[str, Faulty]) -> None:
    """The error names the key id, and no service is asked."""
    with client_with(services, MemoryCapsules()) as elsewhere:
        compact = elsewhere.seal(SECRET, inline=False)
    with pytest.raises(KeyNotFound, match=key_of(compact).hex()):
        kms.open(compact)
    with pytest.raises(KeyNotFound, match=key_of(compact).hex()):
        kms.rewrap(compact)
    assert sum(made.count("decrypt") for made in services.values()) == 0


class Scripted(MemoryCapsules):
    """A store that answers what it is told to, and lets others in before it stores."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: bytes | None = None
        self.meanwhile: list[Callable[[], object]] = []
        self.puts = 0

    def get(self, key_id: bytes) -> bytes | None:
        return super().get(key_id) if self.answer is None else self.answer

    def put(self, key_id: bytes, capsule: bytes, *, replaces: bytes | None) -> None:
        self.puts += 1
        if self.meanwhile:
            self.meanwhile.pop(0)()
        super().put(key_id, capsule, replaces=replaces)


@pytest.fixture
def scripted() -> Scripted:
    """One of them."""
    return Scripted()


def test_a_capsule_that_goes_back_is_refused(
    services: dict[str, Faulty], scripted: Scripted
) -> None:
    """An old capsule has recipients that were removed since; whoever saw the new one notices."""
    with client_with(services, scripted) as kms:
        compact = kms.seal(SECRET, CONTEXT, inline=False)
        old = scripted.get(key_of(compact))
        kms.rewrap(compact, remove="b")
        assert kms.open(compact, CONTEXT) == SECRET
        scripted.answer = old
        with pytest.raises(IntegrityError):
            kms.open(compact, CONTEXT)
        with pytest.raises(IntegrityError):
            kms.rewrap(compact)
        scripted.answer = None
        assert kms.open(compact, CONTEXT) == SECRET
        with client_with(services, scripted) as newcomer:  # who cannot know
            scripted.answer = old
            assert newcomer.open(compact, CONTEXT) == SECRET


def test_each_key_has_generations_of_its_own(
    services: dict[str, Faulty], scripted: Scripted
) -> None:
    """That one capsule is newer says nothing about another."""
    with client_with(services, scripted) as kms:
        first, second = (kms.seal(SECRET, inline=False) for _ in range(2))
        kms.rewrap(first, remove="b")
        assert kms.open(first) == kms.open(second) == SECRET


def test_a_forged_generation_locks_nobody_out(
    services: dict[str, Faulty], scripted: Scripted
) -> None:
    """Once the store is good again, so is the client: it saw no newer capsule that is real."""
    with client_with(services, scripted) as kms:
        compact = kms.seal(SECRET, CONTEXT, inline=False)
        forged = bytearray(scripted.get(key_of(compact)) or b"")
        forged[GENERATION] = (1 << 20).to_bytes(4, "big")
        scripted.answer = bytes(forged)
        with pytest.raises(IntegrityError):
            kms.open(compact, CONTEXT)
        scripted.answer = None
        assert kms.open(compact, CONTEXT) == SECRET


def test_the_capsule_of_another_key_is_refused(
    services: dict[str, Faulty], scripted: Scripted
) -> None:
    """A store cannot swap keys; no service is asked."""
    with client_with(services, scripted) as kms:
        first, second = (kms.seal(SECRET, inline=False) for _ in range(2))
        scripted.answer = scripted.get(key_of(second))
        with pytest.raises(IntegrityError):
            kms.open(first)
    assert sum(made.count("decrypt") for made in services.values()) == 0


# --- rewraps -------------------------------------------------------------------------------------


def test_a_rewrap_changes_the_store_only(
    kms: Kms, services: dict[str, Faulty], capsules: CapsuleStore
) -> None:
    """The message comes back as it was, and every other message of the key profits."""
    compact = kms.seal(SECRET, CONTEXT, inline=False)
    assert kms.rewrap(compact, remove="b") == compact
    assert (holders(capsules, compact), stored(capsules, compact).generation) == ("ac", 1)
    assert kms.open(compact, CONTEXT) == SECRET
    with client_with({"b": services["b"]}, capsules) as removed, pytest.raises(IntegrityError):
        removed.open(compact, CONTEXT)


def test_a_text_message_is_rewrapped_as_well(kms: Kms, capsules: CapsuleStore) -> None:
    """By the key it names."""
    text = kms.seal(SECRET, inline=False, armor=True)
    compact = kms.rewrap(text, remove="c")
    assert holders(capsules, compact) == "ab"
    assert kms.open(text) == kms.open(compact) == SECRET


def test_a_compact_stream_is_rewrapped_as_well(kms: Kms, capsules: CapsuleStore) -> None:
    """Its body names a key like any other."""
    stream = io.BytesIO()
    with kms.sealing(stream, CONTEXT, inline=False) as writer:
        writer.write(SECRET)
    assert kms.rewrap(stream.getvalue(), remove="c") == stream.getvalue()
    assert holders(capsules, stream.getvalue()) == "ab"


def test_with_nothing_to_do_nothing_is_stored(
    services: dict[str, Faulty], scripted: Scripted
) -> None:
    """The capsule is complete."""
    with client_with(services, scripted) as kms:
        compact = kms.seal(SECRET, inline=False)
        assert kms.rewrap(compact) == compact
    assert scripted.puts == 1
    assert stored(scripted, compact).generation == 0


def test_a_degraded_capsule_is_repaired_in_its_place(
    kms: Kms, services: dict[str, Faulty], capsules: CapsuleStore
) -> None:
    """With room for what was missing, so that its length stays."""
    services["b"].always("encrypt", DOWN)
    compact = kms.seal(SECRET, CONTEXT, inline=False)
    before = len(capsules.get(key_of(compact)) or b"")
    assert stored(capsules, compact).missing == ("memory://b/default",)
    services["b"].heal()
    kms.rewrap(compact)
    assert (holders(capsules, compact), stored(capsules, compact).missing) == ("abc", ())
    assert len(capsules.get(key_of(compact)) or b"") == before


def test_a_rewrap_that_fails_leaves_the_store_alone(
    kms: Kms, services: dict[str, Faulty], capsules: CapsuleStore
) -> None:
    """The old capsule is still the good one."""
    compact = kms.seal(SECRET, inline=False)
    kms.rewrap(compact, remove="b")
    services["b"].always("encrypt", DOWN)
    with pytest.raises(AllInstancesFailed):
        kms.rewrap(compact, add="b", remove="a")
    assert (holders(capsules, compact), stored(capsules, compact).generation) == ("ac", 1)


# --- two clients at once -------------------------------------------------------------------------


@pytest.fixture
def rivals(services: dict[str, Faulty], scripted: Scripted) -> Iterator[tuple[Kms, Kms]]:
    """Two clients on one store, each of which seals to ``a`` and repairs nothing else."""
    with (
        client_with(services, scripted, recipients=("a",)) as one,
        client_with(services, scripted, recipients=("a",)) as other,
    ):
        yield one, other


def test_no_addition_is_lost(rivals: tuple[Kms, Kms], scripted: Scripted) -> None:
    """Who comes second adds to what the first has stored."""
    one, other = rivals
    compact = one.seal(SECRET, CONTEXT, inline=False)
    scripted.meanwhile = [lambda: other.rewrap(compact, add="c")]
    one.rewrap(compact, add="b")
    assert (holders(scripted, compact), stored(scripted, compact).generation) == ("abc", 2)
    assert scripted.puts == 4  # the first, the loser's, the winner's, and the loser's again
    assert one.open(compact, CONTEXT) == other.open(compact, CONTEXT) == SECRET


def test_no_removal_is_undone(rivals: tuple[Kms, Kms], scripted: Scripted) -> None:
    """Who comes second does not write back what the first removed."""
    one, other = rivals
    compact = one.seal(SECRET, CONTEXT, inline=False)
    one.rewrap(compact, add="b")
    scripted.meanwhile = [lambda: other.rewrap(compact, remove="b")]
    one.rewrap(compact, add="c")
    assert (holders(scripted, compact), stored(scripted, compact).generation) == ("ac", 3)


def test_a_removal_is_carried_out_on_what_was_added_meanwhile(
    rivals: tuple[Kms, Kms], scripted: Scripted
) -> None:
    """Both intents hold in the end."""
    one, other = rivals
    compact = one.seal(SECRET, CONTEXT, inline=False)
    one.rewrap(compact, add="b")
    scripted.meanwhile = [lambda: other.rewrap(compact, add="c")]
    one.rewrap(compact, remove="b")
    assert holders(scripted, compact) == "ac"


def test_the_same_addition_twice_is_one(rivals: tuple[Kms, Kms], scripted: Scripted) -> None:
    """Who comes second wraps again, and stands in the same place."""
    one, other = rivals
    compact = one.seal(SECRET, CONTEXT, inline=False)
    scripted.meanwhile = [lambda: other.rewrap(compact, add="b")]
    one.rewrap(compact, add="b")
    assert holders(scripted, compact) == "ab"
    assert one.open(compact, CONTEXT) == SECRET


def test_the_same_removal_twice_is_one(rivals: tuple[Kms, Kms], scripted: Scripted) -> None:
    """Who comes second finds its intent fulfilled."""
    one, other = rivals
    compact = one.seal(SECRET, CONTEXT, inline=False)
    one.rewrap(compact, add="b")
    scripted.meanwhile = [lambda: other.rewrap(compact, remove="b")]
    one.rewrap(compact, remove="b")
    assert holders(scripted, compact) == "a"


def test_the_last_recipients_are_not_removed_by_halves(
    rivals: tuple[Kms, Kms], scripted: Scripted
) -> None:
    """Each removal alone would leave somebody; together they must not leave nobody."""
    one, other = rivals
    compact = one.seal(SECRET, CONTEXT, inline=False)
    one.rewrap(compact, add="b")
    scripted.meanwhile = [lambda: other.rewrap(compact, remove="b")]
    with pytest.raises(InvalidRequest, match="must leave at least 1 recipient"):
        one.rewrap(compact, remove="a", repair=False)
    assert holders(scripted, compact) == "a"


def test_shares_are_split_anew_from_what_was_stored_meanwhile(
    services: dict[str, Faulty], stores: dict[str, MemoryStore], scripted: Scripted
) -> None:
    """An addition on the old polynomial that loses against a removal moves to the new one."""
    services["d"] = service("d")
    policy: dict[str, Any] = {"recipients": ("a", "b", "c"), "policy": "2 of 3"}
    with (
        client_with(services, scripted, **policy) as one,
        client_with(services, scripted, **policy) as other,
    ):
        compact = one.seal(SECRET, CONTEXT, inline=False)
        scripted.meanwhile = [lambda: other.rewrap(compact, remove="c", repair=False)]
        one.rewrap(compact, add="d", repair=False)
        assert holders(scripted, compact) == "abd"
    for names in ("ab", "ad", "bd"):
        with client_with({name: services[name] for name in names}, scripted) as reader:
            assert reader.open(compact, CONTEXT) == SECRET


def test_whoever_loses_again_and_again_is_told(rivals: tuple[Kms, Kms], scripted: Scripted) -> None:
    """That is no colleague but a loop."""
    one, other = rivals
    compact = one.seal(SECRET, inline=False)

    def interfere() -> None:
        scripted.meanwhile, pending = [], scripted.meanwhile
        other.rewrap(compact, add="c")
        scripted.meanwhile = pending

    scripted.meanwhile = [interfere] * 20
    with pytest.raises(RewrapConflict):
        one.rewrap(compact, add="b")
    assert holders(scripted, compact) == "ac"


def test_a_conflict_is_told_to_observers_as_one_rewrap_each(
    services: dict[str, Faulty], scripted: Scripted
) -> None:
    """Each attempt is one: both did their work."""
    events = Events()
    with (
        client_for(
            services,
            modules={"recorder": events.module},
            options={"capsules": scripted},
            recipients=("a",),
        ) as one,
        client_with(services, scripted, recipients=("a",)) as other,
    ):
        compact = one.seal(SECRET, inline=False)
        scripted.meanwhile = [lambda: other.rewrap(compact, add="c")]
        one.rewrap(compact, add="b")
    assert [event.outcome for event in events.of("rewrap")] == ["ok", "ok"]
