"""What a client refuses to seal, to open and to rewrap, whatever the services would do."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from kms_core import (
    AllInstancesFailed,
    Ciphertext,
    ConfigError,
    Context,
    Event,
    IntegrityError,
    InvalidRequest,
    Kms,
    KMSError,
    MemoryCapsules,
    PolicyDenied,
    Unavailable,
    hookimpl,
)
from kms_core.testing import Faulty, MemoryProvider, MemorySettings, raising
from tests.support import client_for, service

SECRET = b"secret"
DOWN = raising(Unavailable, "down")
TENANT = {"tenant": "42"}
KEY_CONTEXT: dict[str, Any] = {"key_context": ("tenant",)}
NO_PUBLIC: dict[str, Any] = {"allow_public_key_wraps": False}

SYMMETRIC, CLASSICAL, HYBRID = 0x0501, 0x0601, 0x0602


def wrapping_with(*wrap_algs: int) -> type[MemoryProvider]:
    """A provider that can read all of these and writes the first."""

    class Wraps(MemoryProvider):
        @hookimpl
        def encrypt(
            self, key_id: str, plaintext: bytes | bytearray, context: Context
        ) -> Ciphertext:
            wrap: Ciphertext = super().encrypt(key_id, plaintext, context)
            return evolve(wrap, wrap_alg=wrap_algs[0])

    Wraps.wrap_algs = frozenset(wrap_algs)
    return Wraps


def services(**wrap_algs: int | tuple[int, ...]) -> dict[str, Faulty]:
    """Services by name, each with its algorithm, or with those that it could use."""
    return {
        name: service(name, kind=wrapping_with(*(algs if isinstance(algs, tuple) else (algs,))))
        for name, algs in wrap_algs.items()
    }


def again(made: Mapping[str, Faulty]) -> dict[str, Faulty]:
    """Other instances of the same services, which were asked nothing yet."""
    return {
        name: Faulty(type(each._provider)(MemorySettings(store=each.store)))
        for name, each in made.items()
    }


def total(made: Mapping[str, Faulty], hook: str) -> int:
    """How often any of them was asked."""
    return sum(each.count(hook) for each in made.values())


# --- scope ---------------------------------------------------------------------------------------


@pytest.fixture
def two() -> dict[str, Faulty]:
    """Two services."""
    return {name: service(name) for name in "ab"}


@pytest.fixture
def scoped(two: dict[str, Faulty]) -> Iterator[Kms]:
    """Tells the services for which tenant a key is."""
    with client_for(two, options={"capsules": MemoryCapsules()}, **KEY_CONTEXT) as made:
        yield made


@pytest.mark.parametrize(
    ("context", "stored"),
    [
        ({"tenant": "42", "row": "7"}, None),
        ({"row": "7"}, {"tenant": "42"}),
        ({"tenant": "42", "row": "7"}, {"tenant": "42"}),
    ],
    ids=["supplied", "stored", "both"],
)
def test_entries_of_the_key_context_become_the_scope(
    scoped: Kms, context: dict[str, str], stored: dict[str, str] | None
) -> None:
    """Wherever they come from; the others stay out of the services' logs."""
    blob = scoped.seal(SECRET, context, stored_context=stored)
    assert Kms.inspect(blob).scope == TENANT
    assert scoped.open(blob, context) == SECRET


@pytest.mark.parametrize("context", [None, {}, {"row": "7"}, {"Tenant": "42"}])
def test_sealing_without_the_key_context_is_refused(
    scoped: Kms, two: dict[str, Faulty], context: dict[str, str] | None
) -> None:
    """The message names what is lacking, and no service is asked."""
    with pytest.raises(InvalidRequest, match="the context lacks tenant"):
        scoped.seal(SECRET, context)
    assert total(two, "encrypt") == 0


def test_an_empty_entry_separates_nobody(scoped: Kms) -> None:
    """It may not be part of a scope."""
    with pytest.raises(InvalidRequest, match="'tenant' is empty or reserved"):
        scoped.seal(SECRET, {"tenant": ""})


def test_two_contexts_that_disagree_are_refused(scoped: Kms) -> None:
    """There would be two scopes."""
    with pytest.raises(InvalidRequest, match="disagree"):
        scoped.seal(SECRET, TENANT, stored_context={"tenant": "43"})


@pytest.mark.parametrize("form", ["message", "stream", "compact"])
@pytest.mark.parametrize("context", [None, {"tenant": "43"}, {"row": "42"}])
def test_another_tenant_asks_no_service(
    scoped: Kms, two: dict[str, Faulty], form: str, context: dict[str, str] | None
) -> None:
    """The scope is compared before any key service is asked for anything."""
    if form == "stream":
        stream = io.BytesIO()
        with scoped.sealing(stream, TENANT) as writer:
            writer.write(SECRET)
        blob = stream.getvalue()
    else:
        blob = scoped.seal(SECRET, TENANT, inline=form == "message")
    with pytest.raises(IntegrityError):
        scoped.open(blob, context)
    assert (total(two, "decrypt"), total(two, "match")) == (0, 0)
    assert scoped.open(blob, TENANT) == SECRET


def test_a_stored_context_does_not_override_what_the_reader_says(
    scoped: Kms, two: dict[str, Faulty]
) -> None:
    """A message of tenant 42 that says so itself is none of tenant 43."""
    blob = scoped.seal(SECRET, stored_context=TENANT)
    with pytest.raises(IntegrityError):
        scoped.open(blob, {"tenant": "43"})
    assert total(two, "decrypt") == 0
    assert scoped.open(blob) == SECRET


def test_a_scope_binds_readers_that_have_no_key_context(two: dict[str, Faulty]) -> None:
    """The rule is the envelope's, and reader and writer may be configured differently."""
    with client_for(two, **KEY_CONTEXT) as writer:
        blob = writer.seal(SECRET, TENANT)
    with client_for(two) as reader:
        with pytest.raises(IntegrityError):
            reader.open(blob)
        assert total(two, "decrypt") == 0
        assert reader.open(blob, TENANT) == SECRET


def test_a_reader_with_a_key_context_opens_what_has_no_scope(two: dict[str, Faulty]) -> None:
    """It was written before the setting was made."""
    with client_for(two) as writer:
        blob = writer.seal(SECRET, TENANT)
    with client_for(two, **KEY_CONTEXT) as reader:
        assert reader.open(blob, TENANT) == SECRET


# --- threshold -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "opens"),
    [("any", False), ("1 of 3", False), ("2 of 3", True), ("3 of 3", True)],
)
def test_a_reader_may_insist_on_a_threshold(policy: str, opens: bool) -> None:  # noqa: FBT001
    """What one recipient could have made alone is refused, and no service is asked."""
    made = {name: service(name) for name in "abc"}
    with client_for(made, policy=policy) as writer:
        blob = writer.seal(SECRET)
    with client_for(made, policy="2 of 3", min_threshold=2) as reader:
        if opens:
            assert reader.open(blob) == SECRET
            return
        with pytest.raises(PolicyDenied, match=r"envelope\.min_threshold is 2"):
            reader.open(blob)
    assert total(made, "decrypt") == 0


# --- wraps that anybody could have made ----------------------------------------------------------


def test_only_wraps_that_are_allowed_are_unwrapped() -> None:
    """The policy is about the recipient that opens, not about those beside it."""
    made = services(open_key=CLASSICAL, hybrid=HYBRID, secret=SYMMETRIC)
    with client_for(made, **NO_PUBLIC) as kms:
        blob = kms.seal(SECRET)
        assert len(Kms.inspect(blob).recipients) == 3
        assert kms.open(blob) == SECRET
    asked = {name: each.count("decrypt") for name, each in made.items()}
    assert asked == {"open_key": 0, "hybrid": 0, "secret": 1}


def test_an_outage_does_not_soften_the_policy() -> None:
    """The recipients that are not allowed stay so."""
    made = services(open_key=CLASSICAL, secret=SYMMETRIC)
    with client_for(made) as lenient:
        blob = lenient.seal(SECRET)
        made["secret"].always("decrypt", DOWN)
        assert lenient.open(blob) == SECRET
    before = made["open_key"].count("decrypt")
    with client_for(made, **NO_PUBLIC) as strict, pytest.raises(AllInstancesFailed):
        strict.open(blob)
    assert made["open_key"].count("decrypt") == before


@pytest.mark.parametrize("wrap_alg", [0x0102, 0x0201, 0x0403, 0x0601, 0x0602, 0x0603])
def test_an_envelope_that_anybody_could_have_made_is_refused(wrap_alg: int) -> None:
    """Every wrap with a public key is one; the message names the setting."""
    made = services(open_key=wrap_alg)
    with client_for(made, **NO_PUBLIC) as kms:
        blob = kms.seal(SECRET)
        with pytest.raises(PolicyDenied, match=r"envelope\.allow_public_key_wraps = false"):
            kms.open(blob)
    assert total(made, "decrypt") == 0
    with client_for(made) as lenient:
        assert lenient.open(blob) == SECRET


@pytest.mark.parametrize("wrap_alg", [0x0101, 0x0202, 0x0301, 0x0401, 0x0402, 0x0501, 0x0502])
def test_wraps_with_a_secret_key_are_allowed(wrap_alg: int) -> None:
    """Whoever made one had access to the service."""
    with client_for(services(secret=wrap_alg), **NO_PUBLIC) as kms:
        assert kms.open(kms.seal(SECRET)) == SECRET


@pytest.mark.parametrize(
    ("algs", "refused"),
    [
        ((SYMMETRIC, SYMMETRIC, HYBRID), False),
        ((SYMMETRIC, HYBRID, HYBRID), True),
        ((CLASSICAL, HYBRID, HYBRID), True),
    ],
)
def test_shares_for_public_keys_do_not_count(
    algs: tuple[int, ...],
    refused: bool,  # noqa: FBT001
) -> None:
    """As many others as the threshold are needed."""
    made = services(**dict(zip("abc", algs, strict=True)))
    with client_for(made, policy="2 of 3", **NO_PUBLIC) as kms:
        blob = kms.seal(SECRET)
        if refused:
            with pytest.raises(PolicyDenied, match="leaves too few recipients"):
                kms.open(blob)
            assert total(made, "decrypt") == 0
        else:
            assert kms.open(blob) == SECRET


def test_a_claim_to_another_algorithm_reaches_no_service() -> None:
    """A public key's wrap that calls itself symmetric is none that its holder unwraps."""
    made = services(open_key=CLASSICAL)
    with client_for(made) as writer:
        blob = writer.seal(SECRET)
    position = blob.index(b"memory://open_key") - 5
    assert blob[position : position + 2] == CLASSICAL.to_bytes(2, "big")
    forged = blob[:position] + SYMMETRIC.to_bytes(2, "big") + blob[position + 2 :]
    with client_for(made, **NO_PUBLIC) as reader, pytest.raises(IntegrityError):
        reader.open(forged)
    assert total(made, "decrypt") == 0


# --- rewraps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forger", "policy"),
    [
        ({"recipients": ("open_key",)}, NO_PUBLIC),
        ({"recipients": ("open_key", "hybrid"), "policy": "2 of 2"}, NO_PUBLIC),
        ({"recipients": ("secret",)}, {"min_threshold": 2, "policy": "2 of 3"}),
    ],
    ids=["public key", "public keys", "threshold"],
)
def test_a_rewrap_makes_nothing_acceptable(
    forger: dict[str, Any], policy: dict[str, Any], tmp_path: Path
) -> None:
    """What this client refuses to open it does not give to others that it trusts either."""
    made = services(open_key=CLASSICAL, hybrid=HYBRID, secret=SYMMETRIC)
    capsules, path = MemoryCapsules(), tmp_path / "sealed"
    with client_for(made, options={"capsules": capsules}, **forger) as writer:
        blob, compact = writer.seal(SECRET), writer.seal(SECRET, inline=False)
    path.write_bytes(blob)
    key_id = bytes.fromhex(Kms.inspect(compact).key_id)
    stored = capsules.get(key_id)
    fresh = again(made)
    with client_for(fresh, options={"capsules": capsules}, **policy) as kms:
        attempts: list[Callable[[], object]] = [
            lambda: kms.open(blob),
            lambda: kms.rewrap(blob),
            lambda: kms.rewrap(blob, add="hybrid", remove=forger["recipients"], repair=False),
            lambda: kms.rewrap(compact),
            lambda: kms.rewrap_file(path),
        ]
        for attempt in attempts:
            with pytest.raises(PolicyDenied):
                attempt()
    assert total(fresh, "encrypt") == total(fresh, "decrypt") == 0
    assert (path.read_bytes(), capsules.get(key_id)) == (blob, stored)


def test_a_rewrap_through_an_allowed_recipient_may_add_a_public_key() -> None:
    """The policy is about who vouches for the capsule: here somebody with access did."""
    made = services(secret=SYMMETRIC, hybrid=HYBRID)
    with client_for(made, recipients=("secret",), **NO_PUBLIC) as kms:
        added = kms.rewrap(kms.seal(SECRET), add="hybrid")
        assert len(Kms.inspect(added).recipients) == 2
        assert kms.open(added) == SECRET


# --- post-quantum --------------------------------------------------------------------------------

REQUIRE_PQ: dict[str, Any] = {"require_pq": True}


def test_a_recipient_that_cannot_withstand_is_refused_at_load() -> None:
    """It is named, with what to do."""
    made = services(secret=SYMMETRIC, old=(CLASSICAL, 0x0102))
    with pytest.raises(ConfigError, match="require_pq: old has no wrap that withstands") as caught:
        client_for(made, **REQUIRE_PQ)
    assert "remove it" in str(caught.value)
    with client_for(made, recipients=("secret",), **REQUIRE_PQ) as kms:
        assert kms.open(kms.seal(SECRET)) == SECRET


def test_a_provider_of_unknown_strength_does_not_count_as_strong(two: dict[str, Faulty]) -> None:
    """A third party's algorithm may be anything."""
    with pytest.raises(ConfigError, match="require_pq: a has no wrap"):
        client_for(two, **REQUIRE_PQ)


def test_symmetric_and_hybrid_recipients_seal_together() -> None:
    """None of them is undone by a quantum computer."""
    made = services(secret=SYMMETRIC, hybrid=HYBRID)
    with client_for(made, **REQUIRE_PQ) as kms:
        assert kms.open(kms.seal(SECRET)) == SECRET


def test_a_weak_wrap_that_only_shows_at_sealing_is_refused(tmp_path: Path) -> None:
    """An instance that could do better did not, as its key is of the old kind."""
    made = services(secret=SYMMETRIC, mixed=(CLASSICAL, HYBRID))
    plain, sealed, stream, capsules = tmp_path / "p", tmp_path / "s", io.BytesIO(), MemoryCapsules()
    plain.write_bytes(SECRET)
    with client_for(made, options={"capsules": capsules}, **REQUIRE_PQ) as kms:
        attempts: list[Callable[[], object]] = [
            lambda: kms.seal(SECRET),
            lambda: kms.seal(SECRET, inline=False),
            lambda: kms.sealing(stream),
            lambda: kms.seal_file(plain, sealed),
        ]
        for attempt in attempts:
            with pytest.raises(PolicyDenied, match=r"mixed wrapped with .*nothing was written"):
                attempt()
    assert stream.getvalue() == b""
    assert not sealed.exists()
    assert list(capsules.key_ids()) == []


def test_an_envelope_from_before_still_opens() -> None:
    """The requirement is about what is sealed."""
    made = services(secret=SYMMETRIC, old=CLASSICAL)
    with client_for(made, recipients=("old",)) as before:
        blob = before.seal(SECRET)
    with client_for(made, recipients=("secret",), **REQUIRE_PQ) as kms:
        assert kms.open(blob) == SECRET
        moved = kms.rewrap(blob, remove="old")
    assert [each.wrap_alg for each in Kms.inspect(moved).recipients] == [SYMMETRIC]


def test_a_weak_recipient_is_not_added_later() -> None:
    """The weakest recipient decides, however it came in."""
    made = services(secret=SYMMETRIC, old=CLASSICAL)
    with client_for(made, recipients=("secret",), **REQUIRE_PQ) as kms:
        blob = kms.seal(SECRET)
        with pytest.raises(PolicyDenied, match="require_pq"):
            kms.rewrap(blob, add="old")


# --- the events of refusals ----------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["open", "rewrap"])
def test_a_refusal_is_told_to_observers(operation: str) -> None:
    """As a policy's, which is neither an outage nor a forgery."""
    seen: list[Event] = []
    made = services(open_key=CLASSICAL)
    with client_for(made, options={"observe": seen.append}, **NO_PUBLIC) as kms:
        blob = kms.seal(SECRET)
        with pytest.raises(KMSError):
            getattr(kms, operation)(blob, **({"add": "open_key"} if operation == "rewrap" else {}))
    assert [(event.operation, event.outcome) for event in seen][-1] == (operation, "policy_denied")
    assert all(event.operation != "breaker" for event in seen)
