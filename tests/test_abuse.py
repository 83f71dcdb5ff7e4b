"""Whoever sends crafted envelopes gets no service to work for them, and harms nobody else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import evolve

from kms_core import (
    AccessDenied,
    AllInstancesFailed,
    BreakerPolicy,
    Duration,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    Kms,
    KMSError,
    Throttled,
    Unavailable,
)
from kms_core.calls import BURST_SECONDS, CANARIES_PER_SECOND
from kms_core.testing import Fault, Faulty, raising
from kms_core.unwrapping import REFUSED_SECONDS
from tests.support import PATIENT, Clock, client_for, service

GOOD, EVIL = {"tenant": "good"}, {"tenant": "evil"}
RATE = PATIENT.bad_unwraps
PER_SECOND = 1000  # what the attacker sends
SECONDS = 6


@pytest.fixture
def clock() -> Clock:
    """Time that passes as told."""
    return Clock()


@pytest.fixture
def services() -> dict[str, Faulty]:
    """Three services of different owners."""
    return {name: service(name) for name in "abc"}


@pytest.fixture
def kms(services: dict[str, Faulty], clock: Clock) -> Iterator[Kms]:
    """A client that keeps tenants apart, with nervous breakers and no memory of refused keys."""
    with client_for(
        services,
        options={"clock": clock},
        calls=evolve(PATIENT, cooldown=Duration(0.0)),
        breaker=BreakerPolicy(failure_threshold=1),
        key_context=("tenant",),
    ) as kms:
        yield kms


def forged(sealed: bytes, rng: random.Random, uris: list[str]) -> bytes:
    """The envelope with a byte of every wrapped key altered, differently each time."""
    made = bytearray(sealed)
    for uri in uris:
        after = made.index(uri.encode()) + len(uri)
        made[after + 20 + rng.randrange(30)] ^= rng.randrange(1, 256)
    return bytes(made)


def calling_it(error: Callable[[str], Exception]) -> Fault:
    """A plugin that has another error for a wrap that is bad."""

    def fault(_call: Any, proceed: Callable[[], Any]) -> Any:
        try:
            return proceed()
        except InvalidCiphertext:
            raise error("whatever") from None

    return fault


def decrypts(services: dict[str, Faulty]) -> dict[str, int]:
    """How often each was asked to unwrap."""
    return {name: made.count("decrypt") for name, made in services.items()}


def test_flood_of_forged_envelopes_is_bounded_and_harms_nobody_else(
    kms: Kms, services: dict[str, Faulty], clock: Clock
) -> None:
    """A thousand a second: no breaker opens, and each service does its stated share at most."""
    rng = random.Random(7)  # noqa: S311  reproducible
    theirs = kms.seal(b"data", EVIL)
    ours = kms.seal(b"data", GOOD)
    uris = [recipient.key_uri for recipient in kms.inspect(theirs).recipients]
    opened = 0
    for number in range(PER_SECOND * SECONDS):
        clock.advance(1 / PER_SECOND)
        with pytest.raises(KMSError) as caught:
            kms.open(forged(theirs, rng, uris), EVIL)
        assert isinstance(caught.value, IntegrityError | AllInstancesFailed)
        if number % 100 == 0:
            assert kms.open(ours, GOOD) == b"data"
            opened += 1
    bound = RATE * (BURST_SECONDS + SECONDS) + 1
    for name, count in decrypts(services).items():
        assert count <= bound + opened, name
    assert {breaker.state for breaker in kms.breakers.values()} == {"closed"}


@pytest.mark.parametrize(
    "error", [KeyNotFound, KeyDisabled, AccessDenied, InvalidRequest, KeyError]
)
def test_flood_is_bounded_whatever_the_plugin_makes_of_it(
    kms: Kms, services: dict[str, Faulty], clock: Clock, error: type[Exception]
) -> None:
    """A key that does not exist, or no documented error at all: the sender has caused it."""
    rng = random.Random(7)  # noqa: S311  reproducible
    theirs, ours = kms.seal(b"data", EVIL), kms.seal(b"data", GOOD)
    uris = [recipient.key_uri for recipient in kms.inspect(theirs).recipients]
    for made in services.values():
        made.always("decrypt", calling_it(error))
    for _ in range(PER_SECOND):
        clock.advance(1 / PER_SECOND)
        with pytest.raises(AllInstancesFailed):
            kms.open(forged(theirs, rng, uris), EVIL)
    bound = RATE * (BURST_SECONDS + 1) + 1
    canaries = CANARIES_PER_SECOND * (BURST_SECONDS + 1) + 1
    for name, count in decrypts(services).items():
        assert count <= bound + canaries, name
    assert {breaker.state for breaker in kms.breakers.values()} == {"closed"}
    assert kms.open(ours, GOOD) == b"data"


def test_plugin_that_is_broken_for_everybody_opens_its_breaker(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """It fails with a canary of ours as well, which nobody else has made."""
    ours = kms.seal(b"data", GOOD)
    services["a"].always("decrypt", raising(KeyError, "oops"))
    assert kms.open(ours, GOOD) == b"data"
    states = {name: breaker.state for name, breaker in kms.breakers.items()}
    assert states == {"a": "open", "b": "closed", "c": "closed"}


def test_refusal_for_too_many_says_when_to_come_again(
    kms: Kms, services: dict[str, Faulty], clock: Clock
) -> None:
    """Also the honest envelopes of that partition wait, and then open again."""
    rng = random.Random(7)  # noqa: S311  reproducible
    theirs = kms.seal(b"data", EVIL)
    uris = [recipient.key_uri for recipient in kms.inspect(theirs).recipients]
    for _ in range(int(RATE * BURST_SECONDS) + 1):
        with pytest.raises(KMSError):
            kms.open(forged(theirs, rng, uris), EVIL)
    with pytest.raises(AllInstancesFailed) as caught:
        kms.open(theirs, EVIL)
    errors = [attempt.error for attempt in caught.value.attempts]
    assert {type(error) for error in errors} == {Throttled}
    assert all("bad_unwraps" in str(error) for error in errors)
    clock.advance(1)
    assert kms.open(theirs, EVIL) == b"data"


def test_same_forged_envelope_is_refused_without_asking_again(
    kms: Kms, services: dict[str, Faulty], clock: Clock
) -> None:
    """For a while; the genuine one, which differs, opens meanwhile."""
    theirs = kms.seal(b"data", EVIL)
    uris = [recipient.key_uri for recipient in kms.inspect(theirs).recipients]
    bad = forged(theirs, random.Random(7), uris)  # noqa: S311  reproducible
    with pytest.raises(IntegrityError):
        kms.open(bad, EVIL)
    asked = decrypts(services)
    for _ in range(1000):
        with pytest.raises(IntegrityError):
            kms.open(bad, EVIL)
    assert decrypts(services) == asked
    assert kms.open(theirs, EVIL) == b"data"
    clock.advance(REFUSED_SECONDS)
    with pytest.raises(IntegrityError):
        kms.open(bad, EVIL)
    assert sum(decrypts(services).values()) > sum(asked.values()) + 1


def test_altered_capsule_of_a_genuine_envelope_does_not_shut_the_genuine_one_out(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """The wraps are the same; what is remembered is all of the capsule."""
    theirs = kms.seal(b"data", EVIL)
    mac = len(theirs) - len(b"data") - 59 - 1  # the last byte of the capsule's MAC
    altered = bytearray(theirs)
    altered[mac] ^= 1
    for _ in range(3):
        with pytest.raises(IntegrityError):
            kms.open(bytes(altered), EVIL)
    assert kms.open(theirs, EVIL) == b"data"


def test_envelope_of_another_tenant_costs_no_service_a_call(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """The scope is compared before anybody is asked."""
    theirs = kms.seal(b"data", EVIL)
    for _ in range(100):
        with pytest.raises(IntegrityError):
            kms.open(theirs, GOOD)
    assert sum(decrypts(services).values()) == 0


def test_outage_does_not_use_up_the_allowance(
    kms: Kms, services: dict[str, Faulty], clock: Clock
) -> None:
    """Only answers that prove a bad ciphertext are counted."""
    sealed = kms.seal(b"data", GOOD)
    for made in services.values():
        made.always("decrypt", raising(Unavailable, "down"))
    for _ in range(200):
        with pytest.raises(AllInstancesFailed):
            kms.open(sealed, GOOD)
        for name in services:
            kms.force_breaker(name, None)
    for made in services.values():
        made.heal()
    assert kms.open(sealed, GOOD) == b"data"


def test_two_of_three_with_one_domain_up_is_refused_not_written(
    services: dict[str, Faulty],
) -> None:
    """An envelope that nobody could open must not come into being."""
    for name in "bc":
        services[name].always("encrypt", raising(Unavailable, "down"))
    options: dict[str, Any] = {"policy": "2 of 3", "min_recipients": 2}
    with client_for(services, **options) as kms, pytest.raises(AllInstancesFailed) as caught:
        kms.seal(b"data", GOOD)
    assert "nothing was written" in str(caught.value)
