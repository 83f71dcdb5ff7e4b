"""Who can open an envelope is changed without touching what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms_core import (
    AccessDenied,
    AllInstancesFailed,
    FormatError,
    IntegrityError,
    InvalidRequest,
    Kms,
    KMSError,
    PolicyDenied,
    Unavailable,
    UnsupportedOperation,
    hookimpl,
)
from kms_core.testing import Fault, Faulty, MemoryStore, corrupting, raising, returning
from tests.support import PATIENCE, Clock, Events, client_for, module, service

CONTEXT = {"tenant": "42"}
DOWN = raising(Unavailable, "down")
DENIED = raising(AccessDenied, "no permission")


@pytest.fixture
def stores() -> dict[str, MemoryStore]:
    """Three services that outlive their clients."""
    return {name: MemoryStore(name) for name in "abc"}


@pytest.fixture
def services(stores: dict[str, MemoryStore]) -> dict[str, Faulty]:
    """One instance on each."""
    return {name: service(name, store=store) for name, store in stores.items()}


@pytest.fixture
def events() -> Events:
    """What the client told."""
    return Events()


@pytest.fixture
def kms(services: dict[str, Faulty], events: Events) -> Iterator[Kms]:
    """Seals to all three."""
    with client_for(services, modules={"recorder": events.module}) as made:
        yield made


def holders(blob: bytes) -> list[str]:
    """The stores whose keys are among the recipients."""
    uris = [recipient.key_uri for recipient in Kms.inspect(blob).recipients]
    return sorted(uri.removeprefix("memory://").partition("/")[0] for uri in uris)


def missing(blob: bytes) -> list[str]:
    """The key URIs recorded as missing."""
    return sorted(Kms.inspect(blob).missing)


def body(blob: bytes) -> bytes:
    """What follows the capsule."""
    return blob[Kms.inspect(blob).capsule_bytes :]


def opens(stores: dict[str, MemoryStore], name: str, blob: bytes) -> bool:
    """Whether a reader that has nothing but this one service gets at the content."""
    with client_for({name: service(name, store=stores[name])}) as reader:
        try:
            return reader.open(blob, CONTEXT) == b"secret"
        except IntegrityError:
            return False


def sealed_without(kms: Kms, services: dict[str, Faulty], *lost: str) -> bytes:
    """An envelope written while these were down; they are back afterwards."""
    for name in lost:
        services[name].always("encrypt", DOWN)
    blob = kms.seal(b"secret", CONTEXT)
    for name in lost:
        services[name].heal()
    return blob


# --- repair --------------------------------------------------------------------------------------


def test_what_was_missing_is_added_and_opens_alone(
    kms: Kms, services: dict[str, Faulty], stores: dict[str, MemoryStore]
) -> None:
    """The body and the length stay as they were."""
    blob = sealed_without(kms, services, "b")
    assert missing(blob) == ["memory://b/default"]
    assert not opens(stores, "b", blob)
    repaired = kms.rewrap(blob)
    assert (holders(repaired), missing(repaired)) == (["a", "b", "c"], [])
    assert opens(stores, "b", repaired)
    assert body(repaired) == body(blob)
    assert len(repaired) == len(blob)
    assert Kms.inspect(repaired).generation == 1
    assert Kms.inspect(repaired).key_id == Kms.inspect(blob).key_id


def test_there_is_nothing_to_do_for_a_complete_envelope(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """It comes back unchanged, and no new wrap was asked for."""
    blob = kms.seal(b"secret", CONTEXT)
    before = services["a"].count("encrypt")
    assert kms.rewrap(blob) == blob
    assert services["a"].count("encrypt") == before


def test_repairing_twice_is_repairing_once(kms: Kms, services: dict[str, Faulty]) -> None:
    """The second finds nothing to do."""
    repaired = kms.rewrap(sealed_without(kms, services, "b", "c"))
    assert kms.rewrap(repaired) == repaired


def test_a_repair_takes_what_it_can_get_and_records_the_rest(
    kms: Kms, services: dict[str, Faulty], events: Events
) -> None:
    """Half a repair is better than none, and is not silent."""
    blob = sealed_without(kms, services, "b", "c")
    services["c"].always("encrypt", DOWN)
    repaired = kms.rewrap(blob)
    assert (holders(repaired), missing(repaired)) == (["a", "b"], ["memory://c/default"])
    event = events.last("rewrap")
    assert (event.outcome, event.missing, event.unverified) == ("degraded", ("c",), ())


def test_a_repair_that_could_add_nothing_fails_with_every_reason(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """The envelope at hand is still the good one."""
    blob = sealed_without(kms, services, "b", "c")
    services["b"].always("encrypt", DOWN)
    services["c"].always("encrypt", DENIED)
    with pytest.raises(AllInstancesFailed, match="nothing was changed") as caught:
        kms.rewrap(blob)
    assert [type(attempt.error) for attempt in caught.value.attempts] == [Unavailable, AccessDenied]
    assert kms.open(blob, CONTEXT) == b"secret"


def test_without_repair_a_missing_recipient_stays_on_record(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """A later repair must still find it."""
    blob = sealed_without(kms, services, "b", "c")
    assert kms.rewrap(blob, repair=False) == blob
    added = kms.rewrap(blob, add="c", repair=False)
    assert (holders(added), missing(added)) == (["a", "c"], ["memory://b/default"])


def test_a_repair_needs_one_working_unwrap_and_no_context(
    services: dict[str, Faulty], kms: Kms
) -> None:
    """Whoever repairs need not be able to read."""
    blob = sealed_without(kms, services, "b")
    services["a"].always("decrypt", DOWN)
    assert holders(kms.rewrap(blob)) == ["a", "b", "c"]
    services["c"].always("decrypt", DOWN)
    with pytest.raises(AllInstancesFailed):
        kms.rewrap(blob)


def test_a_scope_stays_bound(stores: dict[str, MemoryStore]) -> None:
    """The new wrap is bound to the same context as the others."""
    made = {name: service(name, store=stores[name]) for name in "ab"}
    with client_for(made, key_context=("tenant",)) as kms:
        repaired = kms.rewrap(sealed_without(kms, made, "b"))
        assert Kms.inspect(repaired).scope == CONTEXT
    assert opens(stores, "b", repaired)


# --- adding --------------------------------------------------------------------------------------


def test_an_instance_that_is_no_recipient_can_be_added(stores: dict[str, MemoryStore]) -> None:
    """By name, one or several."""
    made = {name: service(name, store=stores[name]) for name in "abc"}
    for add in ("b", ["b"], ["b", "c"], ("b", "b")):
        with client_for(made, recipients=("a",)) as kms:
            blob = kms.seal(b"secret", CONTEXT)
            assert holders(kms.rewrap(blob, add=add)) == ["a", *sorted(set(add))]


def test_adding_after_a_rotation_adds_the_new_version(
    kms: Kms, services: dict[str, Faulty], stores: dict[str, MemoryStore]
) -> None:
    """The old wrap goes once it is removed by its URI."""
    blob = kms.seal(b"secret", CONTEXT)
    stores["a"].rotate("default")
    assert kms.rewrap(blob) == blob  # the old version still opens
    added = kms.rewrap(blob, add="a", remove="memory://a/default/1")
    uris = {recipient.key_uri for recipient in Kms.inspect(added).recipients}
    assert "memory://a/default/2" in uris
    assert "memory://a/default/1" not in uris
    assert opens(stores, "a", added)


@pytest.mark.parametrize(
    ("hook", "fault"),
    [
        ("encrypt", DOWN),
        ("encrypt", DENIED),
        ("encrypt", corrupting()),
        ("encrypt", returning(None)),
        ("decrypt", DOWN),
        ("decrypt", returning(bytes(32))),
        ("decrypt", returning(b"short")),
    ],
    ids=["down", "denied", "corrupt", "bug", "unproved", "another key", "no key"],
)
def test_an_addition_that_fails_changes_nothing(
    kms: Kms, services: dict[str, Faulty], hook: str, fault: object
) -> None:
    """Neither is anybody removed on its account."""
    blob = kms.seal(b"secret", CONTEXT)
    only_a = kms.rewrap(blob, remove=["b", "c"], repair=False)
    assert holders(only_a) == ["a"]
    services["b"].always(hook, fault)  # type: ignore[arg-type]
    with pytest.raises(AllInstancesFailed, match="nothing was changed"):
        kms.rewrap(only_a, add="b", remove="a", repair=False)


@pytest.mark.parametrize(
    "fault", [DENIED, raising(UnsupportedOperation, "write only")], ids=["denied", "unsupported"]
)
def test_a_wrap_that_may_not_be_unwrapped_here_is_taken_unverified(
    kms: Kms,
    services: dict[str, Faulty],
    stores: dict[str, MemoryStore],
    events: Events,
    fault: object,
) -> None:
    """It is no failure to have fewer rights, but it is told."""
    blob = sealed_without(kms, services, "b")
    services["b"].always("decrypt", fault)  # type: ignore[arg-type]
    repaired = kms.rewrap(blob)
    assert opens(stores, "b", repaired)
    event = events.last("rewrap")
    assert (event.outcome, event.unverified, event.missing) == ("degraded", ("b",), ())


def test_every_new_wrap_is_proved_by_its_own_instance(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """One call to wrap and one to unwrap; others are asked for the old data key only."""
    blob = sealed_without(kms, services, "c")
    before = {name: made.count("decrypt") for name, made in services.items()}
    kms.rewrap(blob)
    asked = {name: made.count("decrypt") - before[name] for name, made in services.items()}
    assert asked == {"a": 1, "b": 0, "c": 1}


def test_an_instance_that_is_not_configured_cannot_be_added(kms: Kms) -> None:
    """The message lists those that can."""
    with pytest.raises(InvalidRequest, match="no instance 'z' to add; known are a, b, c"):
        kms.rewrap(kms.seal(b"secret"), add="z")


# --- removing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("remove", ["b", ["b"], "memory://b/default/1"])
def test_a_recipient_is_removed_by_name_or_uri_and_stays_away(
    kms: Kms, stores: dict[str, MemoryStore], remove: str | Sequence[str]
) -> None:
    """A repair in the same call does not bring it back, and it does not count as missing."""
    blob = kms.seal(b"secret", CONTEXT)
    removed = kms.rewrap(blob, remove=remove)
    assert (holders(removed), missing(removed)) == (["a", "c"], [])
    assert body(removed) == body(blob)
    assert not opens(stores, "b", removed)
    assert kms.open(removed, CONTEXT) == b"secret"


def test_nothing_is_removed_that_was_not_named(kms: Kms, services: dict[str, Faulty]) -> None:
    """Another configuration's recipients are none of ours."""
    blob = kms.seal(b"secret", CONTEXT)
    with client_for({"a": services["a"]}) as other:
        assert other.rewrap(blob) == blob
        assert holders(other.rewrap(blob, add="a")) == ["a", "b", "c"]


def test_what_another_writer_recorded_as_missing_stays_on_record(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """Its own repair will find it."""
    blob = sealed_without(kms, services, "c")
    with client_for({"a": services["a"]}) as other:
        assert other.rewrap(blob) == blob
        again = other.rewrap(blob, add="a")
    assert missing(again) == ["memory://c/default"]
    assert holders(kms.rewrap(again)) == ["a", "b", "c"]


def test_the_last_recipient_cannot_be_removed(kms: Kms) -> None:
    """Nobody could open it any more."""
    with pytest.raises(InvalidRequest, match="must leave at least 1 recipient"):
        kms.rewrap(kms.seal(b"secret"), remove=["a", "b", "c"])


@pytest.mark.parametrize("remove", ["z", "memory://z/default/1"])
def test_removing_what_is_not_there_is_an_error(kms: Kms, remove: str) -> None:
    """A misspelt name must not look like success."""
    with pytest.raises(InvalidRequest, match="neither a recipient"):
        kms.rewrap(kms.seal(b"secret"), remove=remove)


@given(st.sets(st.sampled_from("abc"), max_size=2), st.sets(st.sampled_from("abc"), max_size=2))
@settings(max_examples=30)
def test_whatever_is_lost_and_removed_the_rest_opens(lost: set[str], removed: set[str]) -> None:
    """After a rewrap exactly those who were not removed hold the key."""
    stores = {name: MemoryStore(name) for name in "abc"}
    made = {name: service(name, store=store) for name, store in stores.items()}
    with client_for(made) as kms:
        blob = sealed_without(kms, made, *lost)
        rewrapped = kms.rewrap(blob, remove=sorted(removed - lost))
    assert body(rewrapped) == body(blob)
    left = {"a", "b", "c"} - (removed - lost)
    assert {name for name in stores if opens(stores, name, rewrapped)} == left


# --- instances that cannot be asked --------------------------------------------------------------


def test_a_recipient_that_cannot_be_asked_is_not_recorded_as_missing(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """It holds a wrap; that its service is down does not change that."""
    blob = kms.seal(b"secret", CONTEXT)
    for hook in ("match", "encrypt", "decrypt"):
        services["b"].always(hook, DOWN)
    removed = kms.rewrap(blob, remove="c")
    assert (holders(removed), missing(removed)) == (["a", "b"], [])


def test_removing_an_instance_that_cannot_be_asked_says_so(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """It is a recipient, and the caller is told why it cannot be recognised."""
    blob = kms.seal(b"secret", CONTEXT)
    services["b"].always("match", DOWN)
    with pytest.raises(Unavailable, match="b cannot tell now which recipients are its own"):
        kms.rewrap(blob, remove="b")


# --- what cannot be rewrapped --------------------------------------------------------------------


def test_an_altered_capsule_is_not_rewrapped(kms: Kms, services: dict[str, Faulty]) -> None:
    """A forged recipient must not be confirmed by a new signature."""
    blob = sealed_without(kms, services, "b")
    forged = blob.replace(b"memory://b/default", b"memory://z/default")
    assert forged != blob
    with pytest.raises(IntegrityError):
        kms.rewrap(forged)


def test_a_body_alone_or_a_capsule_alone_is_no_envelope(kms: Kms) -> None:
    """The capsule of the one is elsewhere, the other has nothing to keep."""
    blob = kms.seal(b"secret")
    with pytest.raises(InvalidRequest, match="capsule store"):
        kms.rewrap(body(blob))
    with pytest.raises(FormatError):
        kms.rewrap(blob[: -len(body(blob))])


# --- what must be proved, refused or in time -----------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "fault"),
    [
        ("encrypt", corrupting()),
        ("decrypt", returning(bytearray(32))),
        ("decrypt", returning(bytearray(16))),
        ("decrypt", DOWN),
        ("decrypt", raising(KeyError, "oops")),
        ("match", returning(None)),
    ],
    ids=["corrupted wrap", "another key", "half a key", "down", "bug", "does not know its own key"],
)
def test_a_new_wrap_that_cannot_be_proved_is_not_written(
    services: dict[str, Faulty], hook: str, fault: Fault
) -> None:
    """Not even the removal that was asked for along with it is carried out."""
    with client_for(services, recipients=("a",)) as kms:
        blob = kms.seal(b"secret", CONTEXT)
        services["b"].always(hook, fault)
        with pytest.raises(AllInstancesFailed, match="nothing was changed"):
            kms.rewrap(blob, add="b", remove="a")
        services["b"].heal()
        assert holders(kms.rewrap(blob, add="b", remove="a")) == ["b"]


def test_a_removal_goes_through_while_a_repair_does_not(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """The repair is wished for, the removal is asked for."""
    blob = sealed_without(kms, services, "c")
    services["c"].always("encrypt", DOWN)
    changed = kms.rewrap(blob, remove="b")
    assert (holders(changed), missing(changed)) == (["a"], ["memory://c/default"])


def test_all_versions_that_an_instance_holds_are_removed_with_it(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """By name means: this instance shall not open it any more."""
    blob = kms.seal(b"secret", CONTEXT)
    services["b"].store.rotate("default")
    both = kms.rewrap(blob, add="b")
    assert holders(both) == ["a", "b", "b", "c"]
    assert holders(kms.rewrap(both, remove="b")) == ["a", "c"]


def test_a_policy_may_refuse_new_wraps(services: dict[str, Faulty]) -> None:
    """A refusal ends the rewrap, and nothing has changed."""

    @hookimpl(wrapper=True)
    def encrypt(key_id: str) -> Iterator[None]:
        raise PolicyDenied("no new recipients")
        yield  # pragma: no cover

    with client_for(services, recipients=("a",)) as kms:
        blob = kms.seal(b"secret", CONTEXT)
    policy = module("policy", encrypt=encrypt)
    with (
        client_for(services, modules={"policy": policy}) as kms,
        pytest.raises(PolicyDenied, match="no new recipients"),
    ):
        kms.rewrap(blob)
    assert services["b"].count("encrypt") == 0


def test_one_deadline_covers_all_steps_of_a_rewrap(services: dict[str, Faulty]) -> None:
    """Unwrapping, wrapping and proving together."""
    clock = Clock()
    with client_for(services, recipients=("a",)) as kms:
        blob = kms.seal(b"secret", CONTEXT)

    def slow(_call: object, proceed: Callable[[], Any]) -> Any:
        clock.advance(0.6 * PATIENCE)
        return proceed()

    for name in "ab":
        for hook in ("encrypt", "decrypt"):
            services[name].always(hook, slow)
    options = {"clock": clock, "sleep": clock.sleep}
    with (
        client_for(services, recipients=("a", "b"), options=options) as kms,
        pytest.raises(KMSError),
    ):
        kms.rewrap(blob)
