"""Envelopes that several services must open together: no one of them can alone."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from attrs import evolve, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from kms_core import (
    AllInstancesFailed,
    ConfigError,
    Duration,
    EnvelopePolicy,
    IntegrityError,
    InvalidRequest,
    Kms,
    KMSError,
    MemoryCapsules,
    NoMatchingRecipient,
    Unavailable,
    hookimpl,
)
from kms_core.aead import Keys
from kms_core.envelope import Unlocked, unlock
from kms_core.header import Capsule, Recipient, parse_capsule
from kms_core.shamir import interpolate
from kms_core.testing import Fault, Faulty, MemoryStore, raising, returning
from tests.support import PATIENCE, PATIENT, client_for, hanging, module, service, settings_for

CONTEXT = {"tenant": "42"}
DOWN = raising(Unavailable, "down")
SECRET = b"secret"
TWO_OF_THREE: dict[str, Any] = {"policy": "2 of 3"}
DEGRADED: dict[str, Any] = {"policy": "2 of 3", "min_recipients": 2}


def all_stores(names: str = "abc") -> dict[str, MemoryStore]:
    """Services by name, which outlive their clients."""
    return {name: MemoryStore(name) for name in names}


def on(stores: Mapping[str, MemoryStore], names: str | None = None) -> dict[str, Faulty]:
    """One new instance on each of these stores."""
    return {
        name: service(name, store=stores[name]) for name in (stores if names is None else names)
    }


@pytest.fixture
def stores() -> dict[str, MemoryStore]:
    """Three of them."""
    return all_stores()


@pytest.fixture
def services(stores: dict[str, MemoryStore]) -> dict[str, Faulty]:
    """One instance on each."""
    return on(stores)


@pytest.fixture
def kms(services: dict[str, Faulty]) -> Iterator[Kms]:
    """Seals to three, two of which open; two are enough to write."""
    with client_for(services, **DEGRADED) as made:
        yield made


def capsule_of(blob: bytes) -> Capsule:
    """What stands in front of the body."""
    return parse_capsule(blob[: Kms.inspect(blob).capsule_bytes])


def body_of(blob: bytes) -> bytes:
    """What follows the capsule."""
    return blob[Kms.inspect(blob).capsule_bytes :]


def by_holder(blob: bytes) -> dict[str, Recipient]:
    """The recipients by the name of their store."""
    return {
        each.key_uri.removeprefix("memory://").partition("/")[0]: each
        for each in capsule_of(blob).recipients
    }


def opens(stores: Mapping[str, MemoryStore], names: str | Sequence[str], blob: bytes) -> bool:
    """Whether a reader that has nothing but these services gets at the content."""
    with client_for(on(stores, "".join(names))) as reader:
        try:
            return reader.open(blob, CONTEXT) == SECRET
        except IntegrityError:
            return False


def sealed_without(kms: Kms, services: Mapping[str, Faulty], *lost: str) -> bytes:
    """An envelope written while these were down; they are back afterwards."""
    for name in lost:
        services[name].always("encrypt", DOWN)
    blob = kms.seal(SECRET, CONTEXT)
    for name in lost:
        services[name].heal()
    return blob


def total(services: Mapping[str, Faulty], hook: str) -> int:
    """How often any of them was asked."""
    return sum(made.count(hook) for made in services.values())


@frozen
class Spy:
    """A wrapper that keeps what goes to the services and what comes back, and their values then."""

    wrapped: list[tuple[str, Any, bytes]] = field(factory=list)
    unwrapped: list[tuple[str, Any, bytes]] = field(factory=list)

    @property
    def plugin(self) -> ModuleType:
        """The wrapper's module."""

        @hookimpl(wrapper=True)
        def encrypt(instance: Any, plaintext: Any) -> Any:
            self.wrapped.append((instance.name, plaintext, bytes(plaintext)))
            return (yield)

        @hookimpl(wrapper=True)
        def decrypt(instance: Any) -> Any:
            answer = yield
            self.unwrapped.append((instance.name, answer, bytes(answer)))
            return answer

        return module("spy", encrypt=encrypt, decrypt=decrypt)

    def shares(self) -> dict[str, bytes]:
        """The value last wrapped by each instance."""
        return {name: value for name, _, value in self.wrapped}


# --- sealing and opening -------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["ab", "ac", "bc", "abc", "ca"])
def test_any_two_services_open(stores: dict[str, MemoryStore], names: str) -> None:
    """In whatever order they are configured, and the third may not even be known."""
    with client_for(on(stores), **TWO_OF_THREE) as kms:
        assert opens(stores, names, kms.seal(SECRET, CONTEXT))


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_no_service_opens_alone(stores: dict[str, MemoryStore], name: str) -> None:
    """A reader that is configured for one of them only is as far as any stranger."""
    with client_for(on(stores), **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
    with client_for(on(stores, name)) as reader, pytest.raises(IntegrityError):
        reader.open(blob, CONTEXT)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_reader_with_one_share_too_few_is_told_so(
    stores: dict[str, MemoryStore], names: str
) -> None:
    """Whether the other services are not configured or down, it did get one."""
    with client_for(on(stores), **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
    made = on(stores, names)
    for name in names[1:]:
        made[name].always("decrypt", DOWN)
    with client_for(made) as reader, pytest.raises(KMSError, match="1 more") as caught:
        reader.open(blob, CONTEXT)
    assert "no configured instance holds any key" not in str(caught.value)


def test_a_stranger_holds_none_of_the_keys(stores: dict[str, MemoryStore]) -> None:
    """It is told which ones there are."""
    with client_for(on(stores), **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
    with client_for({"z": service("z")}) as reader, pytest.raises(NoMatchingRecipient) as caught:
        reader.open(blob, CONTEXT)
    assert len(caught.value.key_uris) == 3


def test_two_services_that_are_down_leave_too_few(kms: Kms, services: dict[str, Faulty]) -> None:
    """That is an outage, and no sign of a forgery."""
    blob = kms.seal(SECRET, CONTEXT)
    for name in "ac":
        services[name].always("decrypt", DOWN)
    with pytest.raises(AllInstancesFailed, match="no recipient could be unwrapped") as caught:
        kms.open(blob, CONTEXT)
    assert [attempt.instance for attempt in caught.value.attempts] == ["a", "c"]
    services["b"].always("decrypt", DOWN)
    with pytest.raises(AllInstancesFailed, match="at least 2 more are needed"):
        kms.open(blob, CONTEXT)
    services["c"].heal()
    services["b"].heal()
    assert kms.open(blob, CONTEXT) == SECRET


def test_inspect_tells_threshold_and_shares(kms: Kms) -> None:
    """Without any key: how many are needed, and which share each holds."""
    info = Kms.inspect(kms.seal(SECRET, CONTEXT))
    assert info.threshold == 2
    assert sorted(recipient.share_index for recipient in info.recipients) == [1, 2, 3]


def test_with_policy_any_nobody_holds_a_share(services: dict[str, Faulty]) -> None:
    """All hold the whole key."""
    with client_for(services) as kms:
        info = Kms.inspect(kms.seal(SECRET))
    assert info.threshold == 1
    assert {recipient.share_index for recipient in info.recipients} == {0}


def test_every_service_gets_a_share_of_its_own_and_nobody_the_key(stores: Any) -> None:
    """Any two shares make the same key, and no share is it."""
    spy = Spy()
    with client_for(on(stores), modules={"spy": spy.plugin}, **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
    index_of = {name: each.share_index for name, each in by_holder(blob).items()}
    indexed = {index_of[name]: share for name, share in spy.shares().items()}
    keys = {
        bytes(interpolate({index: indexed[index] for index in pair}))
        for pair in combinations(indexed, 2)
    }
    assert len(keys) == 1
    assert len(keys | set(indexed.values())) == 4


def test_all_forms_of_envelopes_have_a_threshold(
    stores: dict[str, MemoryStore], tmp_path: Path
) -> None:
    """Streams, files and compact messages open as messages do."""
    plain, sealed, opened = tmp_path / "plain", tmp_path / "sealed", tmp_path / "opened"
    plain.write_bytes(SECRET)
    capsules, stream = MemoryCapsules(), io.BytesIO()
    with client_for(on(stores), options={"capsules": capsules}, **TWO_OF_THREE) as kms:
        with kms.sealing(stream, CONTEXT) as writer:
            writer.write(SECRET)
        kms.seal_file(plain, sealed, CONTEXT)
        compact = kms.seal(SECRET, CONTEXT, inline=False)
    assert not opens(stores, "a", stream.getvalue())
    assert Kms.inspect(stream.getvalue()).threshold == 2
    with client_for(on(stores, "bc"), options={"capsules": capsules}) as reader:
        assert reader.open(stream.getvalue(), CONTEXT) == SECRET
        reader.open_file(sealed, opened, CONTEXT)
        assert opened.read_bytes() == SECRET
        assert reader.open(compact, CONTEXT) == SECRET
    with (
        client_for(on(stores, "b"), options={"capsules": capsules}) as reader,
        pytest.raises(IntegrityError),
    ):
        reader.open(compact, CONTEXT)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[int, str, set[str], set[str]]:
    names = "abcde"[: draw(st.integers(2, 5))]
    threshold = draw(st.integers(2, len(names)))
    lost = draw(st.sets(st.sampled_from(names), max_size=len(names) - threshold))
    return threshold, names, lost, draw(st.sets(st.sampled_from(names), min_size=1))


@given(_cases())
@settings(max_examples=25)
def test_exactly_those_who_are_enough_open(case: tuple[int, str, set[str], set[str]]) -> None:
    """Whatever the threshold, whoever was down while sealing, before and after the repair."""
    threshold, names, lost, readers = case
    stores = all_stores(names)
    made = on(stores)
    policy: dict[str, Any] = {"policy": f"{threshold} of {len(names)}", "min_recipients": threshold}
    with client_for(made, **policy) as kms:
        blob = sealed_without(kms, made, *sorted(lost))
        repaired = kms.rewrap(blob)
    assert opens(stores, sorted(readers), blob) == (len(readers - lost) >= threshold)
    assert opens(stores, sorted(readers), repaired) == (len(readers) >= threshold)


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    ["", "2 of", "2of3", "2 of 3 ", "2  of 3", "0 of 3", "02 of 3", "two", "2 Of 3", "ANY"],
)
def test_a_policy_is_any_or_so_many_of_so_many(policy: str) -> None:
    """Anything else is refused, and the message shows the form."""
    with pytest.raises(ValueError, match='neither "any" nor of the form "2 of 3"'):
        EnvelopePolicy(policy=policy)


@pytest.mark.parametrize(
    ("envelope", "complaint"),
    [
        ({"policy": "2 of 4"}, r"\[envelope\] policy: '2 of 4' with 3 recipients"),
        ({"policy": "2 of 2"}, r"\[envelope\] policy: '2 of 2' with 3 recipients"),
        ({"policy": "4 of 3"}, r"\[envelope\] policy: 4 of 3 recipients can never open anything"),
        ({"policy": "2 of 3", "min_recipients": 1}, "min_recipients is below the threshold"),
        ({"policy": "2 of 3", "recipients": ("a", "b")}, "'2 of 3' with 2 recipients"),
    ],
)
def test_a_policy_that_fits_no_recipients_is_refused(
    services: dict[str, Faulty], envelope: dict[str, Any], complaint: str
) -> None:
    """When it is loaded, not when something is to be opened."""
    with pytest.raises(ConfigError, match=complaint):
        settings_for(services, **envelope)


@pytest.mark.parametrize(
    ("policy", "minimum"),
    [("any", 1), ("1 of 3", 1), ("2 of 3", 3), ("3 of 3", 3)],
)
def test_one_more_than_needed_must_hold_a_share_where_there_are_more(
    services: dict[str, Faulty], policy: str, minimum: int
) -> None:
    """Otherwise the first outage after a degraded seal would make data unreadable."""
    assert settings_for(services, policy=policy).min_recipients == minimum


def test_no_domain_may_hold_enough_shares(services: dict[str, Faulty]) -> None:
    """Two of three in one account could open alone: that is refused at load."""
    shared = {name: {"domain": "one account"} for name in "ab"}
    with pytest.raises(ConfigError) as caught:
        client_for(services, instances=shared, **DEGRADED)
    assert str(caught.value) == (
        "settings: [envelope] policy: domain one account holds 2 shares and could open alone; "
        "at most 1 may be there"
    )


def test_a_domain_may_hold_fewer_shares_than_needed() -> None:
    """Two of them are fine where three are needed."""
    shared = {name: {"domain": "one account"} for name in "ab"}
    made = on(all_stores("abcd"))
    with client_for(made, instances=shared, policy="3 of 4", min_recipients=3) as kms:
        assert kms.open(kms.seal(SECRET)) == SECRET


# --- too few services ----------------------------------------------------------------------------


def test_with_too_few_domains_nothing_is_written(
    services: dict[str, Faulty], tmp_path: Path
) -> None:
    """Not a byte of a stream, no file, no capsule."""
    plain, sealed, stream, capsules = tmp_path / "p", tmp_path / "s", io.BytesIO(), MemoryCapsules()
    plain.write_bytes(SECRET)
    services["b"].always("encrypt", DOWN)
    with client_for(services, options={"capsules": capsules}, **TWO_OF_THREE) as kms:
        attempts: list[Callable[[], object]] = [
            lambda: kms.seal(SECRET),
            lambda: kms.seal(SECRET, inline=False),
            lambda: kms.sealing(stream),
            lambda: kms.seal_file(plain, sealed),
        ]
        for attempt in attempts:
            with pytest.raises(AllInstancesFailed, match="nothing was written: 2 of 3 domains"):
                attempt()
    assert stream.getvalue() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert list(capsules.key_ids()) == []


def test_fewer_than_needed_are_never_enough(kms: Kms, services: dict[str, Faulty]) -> None:
    """A share alone would be of use to nobody."""
    for name in "ab":
        services[name].always("encrypt", DOWN)
    with pytest.raises(AllInstancesFailed, match="1 of 2 domains"):
        kms.seal(SECRET)


# --- repair --------------------------------------------------------------------------------------


def test_a_lost_share_is_made_anew_and_the_others_stay(
    kms: Kms, services: dict[str, Faulty], stores: dict[str, MemoryStore]
) -> None:
    """By interpolation: their blobs, indexes and checks are the same bytes, and so is the body."""
    blob = sealed_without(kms, services, "b")
    assert Kms.inspect(blob).missing == ("memory://b/default",)
    assert opens(stores, "ac", blob)
    repaired = kms.rewrap(blob)
    assert Kms.inspect(repaired).missing == ()
    old, new = by_holder(blob), by_holder(repaired)
    assert {name: new[name] for name in "ac"} == old
    assert new["b"].share_index not in {each.share_index for each in old.values()}
    assert body_of(repaired) == body_of(blob)
    assert len(repaired) == len(blob)
    for pair in ("ab", "bc", "ac"):
        assert opens(stores, pair, repaired)
    assert not opens(stores, "b", repaired)


def test_another_service_gets_another_share(stores: dict[str, MemoryStore]) -> None:
    """Adding changes nobody else's, and the threshold stays."""
    made = on(all_stores("d") | stores)
    with client_for(made, recipients=tuple("abc"), **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
        added = kms.rewrap(blob, add="d")
    old, new = by_holder(blob), by_holder(added)
    assert {name: new[name] for name in "abc"} == old
    assert new["d"].share_index == 4
    assert Kms.inspect(added).threshold == 2
    stores["d"] = made["d"].store
    assert opens(stores, "bd", added)
    assert not opens(stores, "d", added)


def test_a_repair_needs_as_many_as_an_open(kms: Kms, services: dict[str, Faulty]) -> None:
    """One share makes no other."""
    blob = sealed_without(kms, services, "b")
    services["a"].always("decrypt", DOWN)
    with pytest.raises(AllInstancesFailed, match="no recipient could be unwrapped"):
        kms.rewrap(blob)
    assert services["b"].count("encrypt") == 1  # the one that failed while sealing


def test_a_new_share_may_not_give_one_domain_enough(stores: dict[str, MemoryStore]) -> None:
    """What is refused at load is no more possible by a rewrap."""
    made = on(stores)
    made["a2"] = service("a2")
    shared = {name: {"domain": "one account"} for name in ("a", "a2")}
    with client_for(made, instances=shared, recipients=tuple("abc"), **DEGRADED) as kms:
        blob = kms.seal(SECRET, CONTEXT)
        with pytest.raises(InvalidRequest, match="one account would hold 2 shares") as caught:
            kms.rewrap(blob, add="a2")
    assert "nothing was changed" in str(caught.value)


def test_a_new_version_of_a_key_is_no_second_share(stores: dict[str, MemoryStore]) -> None:
    """Whoever has the key has both: the old wrap must go in the same step."""
    with client_for(on(stores), **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
        stores["a"].rotate("default")
        with pytest.raises(InvalidRequest, match="memory:a would hold 2 shares"):
            kms.rewrap(blob, add="a")
        moved = kms.rewrap(blob, add="a", remove="memory://a/default/1")
    assert by_holder(moved)["a"].key_uri == "memory://a/default/2"
    assert opens(stores, "ab", moved)
    assert not opens(stores, "a", moved)


def test_adding_a_holder_again_replaces_its_share(stores: dict[str, MemoryStore]) -> None:
    """It is the same key, so there is one share of it."""
    with client_for(on(stores), **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
        again = kms.rewrap(blob, add="a")
    assert sorted(by_holder(again)) == ["a", "b", "c"]
    assert {by_holder(again)[name] for name in "bc"} == {by_holder(blob)[name] for name in "bc"}
    for pair in ("ab", "ac", "bc"):
        assert opens(stores, pair, again)


# --- removal -------------------------------------------------------------------------------------


def test_removing_means_new_shares_for_all_who_stay(
    kms: Kms, stores: dict[str, MemoryStore]
) -> None:
    """Every blob and every check is another one; key, scope and body are not."""
    blob = kms.seal(SECRET, CONTEXT)
    removed = kms.rewrap(blob, remove="b")
    old, new = by_holder(blob), by_holder(removed)
    assert sorted(new) == ["a", "c"]
    assert {each.blob for each in old.values()}.isdisjoint(each.blob for each in new.values())
    assert {each.share_check for each in old.values()}.isdisjoint(
        each.share_check for each in new.values()
    )
    assert capsule_of(removed).commitment == capsule_of(blob).commitment
    assert body_of(removed) == body_of(blob)
    assert opens(stores, "ac", removed)
    assert not opens(stores, "ab", removed)
    assert not opens(stores, "bc", removed)


def test_old_shares_and_new_ones_do_not_mix(stores: dict[str, MemoryStore]) -> None:
    """They lie on different polynomials: together they make nothing."""
    spy = Spy()
    with client_for(on(stores), modules={"spy": spy.plugin}, **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
        old = {by_holder(blob)[name].share_index: share for name, share in spy.shares().items()}
        removed = kms.rewrap(blob, remove="b")
        new = {
            by_holder(removed)[name].share_index: share
            for name, share in spy.shares().items()
            if name != "b"
        }
    key = interpolate({1: old[1], 2: old[2]})
    assert interpolate(new) == key
    mixed = [
        interpolate({one: old[one], other: new[other]})
        for one in old
        for other in new
        if one != other
    ]
    assert mixed
    assert key not in mixed


def test_an_old_recipient_does_not_fit_into_a_new_capsule(stores: dict[str, MemoryStore]) -> None:
    """Whoever was removed and kept the old capsule gains nothing by putting it in again."""
    with client_for(on(stores), **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
        removed = kms.rewrap(blob, remove="b")
    old, new = by_holder(blob), by_holder(removed)
    assert (old["b"].share_index, new["a"].share_index) == (2, 1)  # so that their indexes fit
    forged = evolve(capsule_of(removed), recipients=(new["a"], old["b"])).unsigned()
    assert not opens(stores, "ab", forged + bytes(32) + body_of(removed))


def test_with_an_unknown_holder_there_is_no_removal(kms: Kms, services: dict[str, Faulty]) -> None:
    """It would keep an old share that fits nothing any more; so nothing is wrapped."""
    blob = kms.seal(SECRET, CONTEXT)
    with client_for({name: services[name] for name in "ab"}) as other:
        before = total(services, "encrypt")
        with pytest.raises(InvalidRequest, match="memory://c/default/1 is no instance"):
            other.rewrap(blob, remove="b")
        assert total(services, "encrypt") == before
        assert other.rewrap(blob, repair=False) == blob


@pytest.mark.parametrize("hook", ["encrypt", "decrypt"])
def test_a_removal_that_reaches_not_everybody_changes_nothing(
    kms: Kms, services: dict[str, Faulty], hook: str
) -> None:
    """Whoever stays must get a new share, or could no longer open."""
    blob = kms.seal(SECRET, CONTEXT)
    services["c"].always(hook, DOWN)
    with pytest.raises(AllInstancesFailed, match="nothing was changed"):
        kms.rewrap(blob, remove="b")


def test_enough_must_stay_to_open(kms: Kms) -> None:
    """The threshold is not lowered by removing."""
    blob = kms.seal(SECRET, CONTEXT)
    with pytest.raises(InvalidRequest, match="must leave at least 2 recipients"):
        kms.rewrap(blob, remove=["a", "b"], repair=False)


def test_removing_and_adding_in_one_step(stores: dict[str, MemoryStore]) -> None:
    """One leaves, another comes, and everybody has a share of the new polynomial."""
    stores |= all_stores("d")
    with client_for(on(stores), recipients=tuple("abc"), **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
        moved = kms.rewrap(blob, add="d", remove="a")
    assert sorted(by_holder(moved)) == ["b", "c", "d"]
    for pair in ("bc", "bd", "cd"):
        assert opens(stores, pair, moved)
    assert not opens(stores, "ad", moved)


# --- bad shares ----------------------------------------------------------------------------------


def test_a_bad_share_is_told_from_a_good_one_and_skipped(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """The next service is asked instead; which one lied is plain from its check."""
    blob = kms.seal(SECRET, CONTEXT)
    for answer in (bytes(32), b"short", b""):
        services["a"].always("decrypt", returning(answer))
        assert kms.open(blob, CONTEXT) == SECRET


def test_two_bad_shares_leave_too_few(kms: Kms, services: dict[str, Faulty]) -> None:
    """As every failure of cryptography, it looks like any other."""
    blob = kms.seal(SECRET, CONTEXT)
    for name in "ab":
        services[name].always("decrypt", returning(bytes(32)))
    with pytest.raises(IntegrityError) as caught:
        kms.open(blob, CONTEXT)
    assert str(caught.value) == str(IntegrityError())


@pytest.mark.parametrize(("threshold", "most"), [(2, 4), (3, 4), (4, 4), (5, 5), (6, 6)])
def test_bad_shares_are_bounded(threshold: int, most: int) -> None:
    """Four services, or as many as are needed, are asked on behalf of a forged capsule."""
    made = on(all_stores("abcdefgh"))
    with client_for(made, policy=f"{threshold} of 8") as kms:
        blob = kms.seal(SECRET, CONTEXT)
        for each in made.values():
            each.always("decrypt", returning(bytes(32)))
        with pytest.raises(IntegrityError):
            kms.open(blob, CONTEXT)
    assert total(made, "decrypt") == most


def test_services_that_are_down_do_not_count_as_bad() -> None:
    """Six are down, and the other two still open."""
    made = on(all_stores("abcdefgh"))
    with client_for(made, policy="2 of 8") as kms:
        blob = kms.seal(SECRET, CONTEXT)
        for name in "abcdef":
            made[name].always("decrypt", DOWN)
        assert kms.open(blob, CONTEXT) == SECRET


# --- who is asked when ---------------------------------------------------------------------------


def meeting(parties: int) -> Fault:
    """A fault that lets nobody pass before so many are there."""
    barrier = threading.Barrier(parties)

    def fault(_call: Any, proceed: Callable[[], Any]) -> Any:
        barrier.wait(PATIENCE)
        return proceed()

    return fault


@pytest.mark.parametrize("threshold", [2, 3])
def test_as_many_as_are_needed_are_asked_at_once(threshold: int) -> None:
    """They wait for each other here, and nobody else is asked."""
    made = on(all_stores("abcd"))
    with client_for(made, policy=f"{threshold} of 4") as kms:
        blob = kms.seal(SECRET, CONTEXT)
        together = meeting(threshold)
        for each in made.values():
            each.always("decrypt", together)
        assert kms.open(blob, CONTEXT) == SECRET
    assert total(made, "decrypt") == threshold


def test_all_are_asked_to_wrap_at_once(services: dict[str, Faulty]) -> None:
    """Three services take as long as one."""
    together = meeting(3)
    for each in services.values():
        each.always("encrypt", together)
    with client_for(services, **TWO_OF_THREE) as kms:
        assert Kms.inspect(kms.seal(SECRET)).missing == ()


def test_a_silent_service_is_hedged(services: dict[str, Faulty]) -> None:
    """After ``hedge_after`` the next one is asked as well, and the slow one is not waited for."""
    calls = evolve(PATIENT, hedge_after=Duration(0.01))
    with hanging() as hang, client_for(services, calls=calls, **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
        services["a"].always("decrypt", hang.fault)
        assert kms.open(blob, CONTEXT) == SECRET
        assert hang.entered.is_set()
        assert not hang.release.is_set()
    assert total(services, "decrypt") == 3


@pytest.mark.parametrize("order", [("a", "a2", "b", "c"), ("b", "a", "a2", "c")])
def test_two_ways_to_the_same_key_are_one_share(
    stores: dict[str, MemoryStore], order: tuple[str, ...]
) -> None:
    """A second endpoint or a replica: the others must still be asked for theirs."""
    with client_for(on(stores), **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
    made = {name: service(name, store=stores[name[0]]) for name in order}
    made["b"].always("decrypt", DOWN)
    with client_for(made) as reader:
        assert reader.open(blob, CONTEXT) == SECRET


# --- what is left in memory ----------------------------------------------------------------------


def test_shares_are_wiped_after_use(stores: dict[str, MemoryStore]) -> None:
    """Those that went to the services and those that came from them; also after a rewrap."""
    spy, made = Spy(), on(stores)
    with client_for(made, modules={"spy": spy.plugin}, **DEGRADED) as kms:
        blob = sealed_without(kms, made, "b")
        kms.open(blob, CONTEXT)
        repaired = kms.rewrap(blob)
        kms.rewrap(repaired, remove="a")
    seen = [*spy.wrapped, *spy.unwrapped]
    assert len(seen) >= 12
    assert all(then != bytes(32) for _, _, then in seen)
    assert {bytes(now) for _, now, _ in seen} == {bytes(32)}


def test_shares_are_wiped_after_a_failure(services: dict[str, Faulty]) -> None:
    """That nothing was written makes them no less secret."""
    spy = Spy()
    with client_for(services, modules={"spy": spy.plugin}, **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET)
        services["c"].always("encrypt", DOWN)
        with pytest.raises(AllInstancesFailed):
            kms.seal(SECRET)
        with pytest.raises(AllInstancesFailed):
            kms.rewrap(blob, remove="b")
    assert len(spy.wrapped) == 8
    assert {bytes(now) for _, now, _ in [*spy.wrapped, *spy.unwrapped]} == {bytes(32)}


@pytest.mark.parametrize("policy", [DEGRADED, {}], ids=["threshold", "any"])
def test_what_a_rewrap_unlocks_is_wiped(
    services: dict[str, Faulty], monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    """The key and the shares it came from, whether or not the rewrap succeeds."""
    unlocked: list[Unlocked] = []

    def watched(capsule: bytes, unwrap: Any, keep: Unlocked) -> Keys:
        unlocked.append(keep)
        keys = unlock(capsule, unwrap, keep)
        assert keep.dek != bytes(32)
        return keys

    monkeypatch.setattr("kms_core.rewrap.unlock", watched)
    with client_for(services, **policy) as kms:
        blob = sealed_without(kms, services, "b")
        kms.rewrap(blob)
        services["b"].always("encrypt", DOWN)
        with pytest.raises(AllInstancesFailed):
            kms.rewrap(blob)
    assert len(unlocked) == 2
    secrets = [secret for each in unlocked for secret in (each.dek, *each.shares.values())]
    assert len(secrets) == (6 if policy else 2)
    assert {bytes(secret) for secret in secrets} == {bytes(32)}


def test_a_share_that_comes_too_late_is_wiped(services: dict[str, Faulty]) -> None:
    """Nobody is waiting for it any more."""
    late = bytearray(b"share" * 8)
    calls = evolve(PATIENT, hedge_after=Duration(0.01), max_concurrency=1)
    with hanging() as hang, client_for(services, calls=calls, **TWO_OF_THREE) as kms:
        blob = kms.seal(SECRET, CONTEXT)
        services["a"].always("decrypt", lambda call, _: hang.fault(call, lambda: late))
        assert kms.open(blob, CONTEXT) == SECRET
        assert late == b"share" * 8
        hang.release.set()
        kms.health()  # runs on a's only thread, after what was under way there
    assert late == bytes(40)
