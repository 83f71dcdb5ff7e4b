"""Who is asked, how often and for how long; what counts against whom; what is wiped."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from attrs import evolve

from kms_core import (
    AccessDenied,
    AllInstancesFailed,
    BreakerOpen,
    BreakerPolicy,
    CallPolicy,
    Ciphertext,
    ConfigError,
    Context,
    DataKey,
    DeadlineExceeded,
    Duration,
    Health,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    NoMatchingRecipient,
    PolicyDenied,
    ProviderBug,
    ServiceError,
    Throttled,
    Unavailable,
    UnsupportedOperation,
    correlation_id,
)
from kms_core.relay import Relay
from kms_core.routing import Quorum, Router
from kms_core.testing import Fault, Faulty, MemoryStore, corrupting, raising, returning
from tests.support import (
    PATIENCE,
    PATIENT,
    Clock,
    Hang,
    OtherProvider,
    hanging,
    router_for,
    service,
)

CONTEXT = Context({"tenant": "42"})
DEK = bytes(range(32))
ANY = Quorum(domains=1, straggler_wait=PATIENCE)
AT_ONCE = Quorum(domains=1, straggler_wait=0.0)
OPENS_AT_ONCE = BreakerPolicy(failure_threshold=1, timeouts_in_a_row=1)
DOWN = raising(Unavailable, "down")
MOMENT = Duration(0.05)  # where real time has to pass
WHILE = Duration(0.5)  # the same where somebody else has to answer within it


def services(*names: str) -> dict[str, Faulty]:
    """One independent service per name."""
    return {name: service(name) for name in names}


def counts(made: Mapping[str, Faulty], hook: str) -> dict[str, int]:
    """How often each was asked."""
    return {name: provider.count(hook) for name, provider in made.items()}


def parts(*names: str) -> dict[str, tuple[bytes, Context]]:
    """The same DEK for everybody."""
    return dict.fromkeys(names, (DEK, CONTEXT))


def bound(ciphertexts: Sequence[Ciphertext]) -> list[tuple[Ciphertext, Context]]:
    """Each with the context it was bound to."""
    return [(ciphertext, CONTEXT) for ciphertext in ciphertexts]


def wrap(router: Router, quorum: Quorum = ANY) -> list[str]:
    """Seal a DEK to everybody; who holds it then."""
    result = router.wrap(parts(*router.relays), quorum)
    return [str(wrap.instance) for wrap in result.wraps]


def wraps_of(router: Router, *names: str) -> list[Ciphertext]:
    """The same DEK wrapped by each of these (default: all)."""
    return [relay.encrypt(DEK, CONTEXT) for relay in relays_of(router, *names)]


def relays_of(router: Router, *names: str) -> list[Relay]:
    """The relays of these names (default: all)."""
    return [router.relays[name] for name in names or router.relays]


def unwrap(router: Router, ciphertexts: list[Ciphertext], **options: Any) -> bytes:
    """Whatever the router finds behind these."""
    return router.unwrap(bound(ciphertexts), lambda _, dek: bytes(dek), **options)


def after(event: threading.Event) -> Fault:
    """Answer honestly once ``event`` is set."""

    def fault(_call: object, proceed: Callable[[], Any]) -> Any:
        assert event.wait(PATIENCE)
        return proceed()

    return fault


def setting(event: threading.Event) -> Fault:
    """Set ``event`` and answer honestly."""

    def fault(_call: object, proceed: Callable[[], Any]) -> Any:
        event.set()
        return proceed()

    return fault


def settle(relay: Relay) -> None:
    """Return once the only worker of this relay has dealt with what it was doing."""
    relay.workers.submit(lambda: None).result(PATIENCE)


def failed(error: AllInstancesFailed) -> list[tuple[str, type[KMSError]]]:
    """Who failed, and how."""
    return [(attempt.instance, type(attempt.error)) for attempt in error.attempts]


# --- policies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"deadline": 0},
        {"attempt_timeout": -1},
        {"hedge_after": float("nan")},
        {"health_timeout": float("inf")},
        {"attempts": 0},
        {"max_concurrency": 0},
    ],
    ids=lambda values: next(iter(values)),
)
def test_times_and_numbers_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=rf"^{next(iter(values))} must be "):
        CallPolicy(**values)


# --- wrapping: enough of them --------------------------------------------------------------------


def test_all_recipients_are_asked_at_the_same_time() -> None:
    """Each of three waits for the other two; one after the other would never end."""
    made = services("a", "b", "c")
    together = threading.Barrier(3, timeout=PATIENCE)

    def meet(_call: object, proceed: Callable[[], Any]) -> Any:
        together.wait()
        return proceed()

    for provider in made.values():
        provider.always("encrypt", meet)
    with router_for(made) as router:
        assert wrap(router) == ["a", "b", "c"]


def test_wraps_come_in_the_order_of_preference_not_of_arrival() -> None:
    """The slowest may be the preferred one."""
    made = services("slow", "fast")
    answered = threading.Event()
    made["slow"].always("encrypt", after(answered))
    made["fast"].always("encrypt", setting(answered))
    with router_for(made) as router:
        assert wrap(router) == ["slow", "fast"]


def test_those_who_failed_are_left_out_on_record() -> None:
    """One outage does not stop a seal, and is not silent."""
    made = services("a", "b", "c")
    made["b"].always("encrypt", DOWN)
    with router_for(made) as router:
        result = router.wrap(parts("a", "b", "c"), ANY)
    assert [wrap.instance for wrap in result.wraps] == ["a", "c"]
    assert [(attempt.instance, type(attempt.error)) for attempt in result.failures] == [
        ("b", Unavailable)
    ]


def test_when_all_fail_every_reason_is_kept_in_order() -> None:
    """``AllInstancesFailed`` is what an operator reads first."""
    made = services("a", "b")
    made["a"].always("encrypt", DOWN)
    made["b"].always("encrypt", raising(AccessDenied, "expired"))
    with router_for(made) as router, pytest.raises(AllInstancesFailed) as caught:
        wrap(router)
    assert failed(caught.value) == [("a", Unavailable), ("b", AccessDenied)]
    assert str(caught.value) == (
        "nothing was written: 0 of 1 domains could wrap the data key: "
        "a.encrypt: down; b.encrypt: expired"
    )


def test_a_quorum_counts_domains_not_instances() -> None:
    """Two ways to one account are one domain: both survive or neither does."""
    store = MemoryStore("account")
    made = {"east": service("", store=store), "west": service("", store=store), **services("b")}
    made["b"].always("encrypt", DOWN)
    two = evolve(ANY, domains=2)
    with router_for(made) as router:
        with pytest.raises(AllInstancesFailed, match="1 of 2 domains"):
            wrap(router, two)
        made["b"].heal()
        made["east"].always("encrypt", DOWN)
        assert wrap(router, two) == ["west", "b"]


def test_a_quorum_that_succeeded_calls_do_not_meet_is_refused_without_attempts() -> None:
    """Configured aliases may turn out to be keys of one domain."""
    made = services("a", "b")
    with (
        router_for(made, domain="one") as router,
        pytest.raises(PolicyDenied, match="1 of 2 domains"),
    ):
        wrap(router, evolve(ANY, domains=2))


def test_a_configured_domain_overrides_the_providers() -> None:
    """Who knows that two stores hang on one power line says so."""
    with router_for(services("a", "b"), domain="one-rack") as router:
        uris = {name: relay.key_uri for name, relay in router.relays.items()}
        assert not router.would_do(uris, ["a", "b"], evolve(ANY, domains=2))


def local_and_service() -> dict[str, Faulty]:
    """A service, and a local key beside it."""
    return {"cloud": service("cloud"), "disk": service("disk", protection="local")}


def test_a_local_copy_alone_does_not_count_beside_a_service() -> None:
    """Falling back from a service to a file is a choice, not an accident."""
    made = local_and_service()
    made["cloud"].always("encrypt", DOWN)
    with router_for(made) as router:
        with pytest.raises(AllInstancesFailed, match=r"envelope\.allow_weaker = true"):
            wrap(router)
        assert wrap(router, evolve(ANY, allow_weaker=True)) == ["disk"]


def test_a_local_copy_is_written_along_with_a_services() -> None:
    """It counts for nothing, and helps all the same."""
    with router_for(local_and_service()) as router:
        assert wrap(router) == ["cloud", "disk"]
        with pytest.raises(PolicyDenied, match="1 of 2"):
            wrap(router, evolve(ANY, domains=2))


def test_a_local_copy_counts_where_there_is_nothing_else() -> None:
    """Development and single machines need no flag."""
    with router_for({"disk": service("disk", protection="local")}) as router:
        assert wrap(router) == ["disk"]


def test_without_a_required_recipient_nothing_is_written() -> None:
    """However many others would do it."""
    made = services("a", "b", "c")
    made["b"].always("encrypt", DOWN)
    with router_for(made) as router, pytest.raises(AllInstancesFailed, match="recipient b is miss"):
        wrap(router, evolve(ANY, required=frozenset({"b"})))


def test_wrapping_for_each_takes_what_it_gets() -> None:
    """A repair has no quorum."""
    made = services("a", "b")
    made["a"].always("encrypt", DOWN)
    with router_for(made) as router:
        result = router.wrap_each(parts("a", "b"), router.deadline())
        assert [wrap.instance for wrap in result.wraps] == ["b"]
        assert [attempt.instance for attempt in result.failures] == ["a"]


@pytest.mark.parametrize("kind", [PolicyDenied, InvalidRequest, ConfigError, UnsupportedOperation])
def test_a_refusal_or_the_callers_mistake_ends_the_seal(kind: type[KMSError]) -> None:
    """Neither is a reason to go on without that recipient."""
    made = services("a", "b")
    made["b"].always("encrypt", raising(kind, "no"))
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        with pytest.raises(kind, match=r"b\.encrypt: no"):
            wrap(router)
        assert router.relays["b"].breaker.state == "closed"


# --- wrapping: stragglers ------------------------------------------------------------------------


def test_a_straggler_is_left_out_on_record_and_counts_as_a_time_out() -> None:
    """It had ``straggler_wait`` once there were enough; three of these open the breaker."""
    made = services("fast", "slow")
    with hanging() as hang, router_for(made, breaker=OPENS_AT_ONCE) as router:
        made["slow"].always("encrypt", hang.fault)
        made["fast"].always("encrypt", after(hang.entered))
        result = router.wrap(parts("fast", "slow"), evolve(ANY, straggler_wait=MOMENT))
        (attempt,) = result.failures
        assert (attempt.instance, type(attempt.error)) == ("slow", DeadlineExceeded)
        assert attempt.error.instance == "slow"
        assert router.relays["slow"].breaker.state == "open"
        assert router.relays["fast"].breaker.state == "closed"


def test_a_straggler_that_makes_it_in_time_is_taken() -> None:
    """There were enough without it."""
    made = services("fast", "slow")
    answered = threading.Event()
    made["fast"].always("encrypt", setting(answered))
    made["slow"].always("encrypt", after(answered))
    with router_for(made) as router:
        assert wrap(router) == ["fast", "slow"]


def test_a_required_recipient_is_no_straggler() -> None:
    """Without it there are not enough, so the others' speed is no reason to hurry."""
    made = services("fast", "slow")
    answered = threading.Event()
    made["fast"].always("encrypt", setting(answered))
    made["slow"].always("encrypt", after(answered))
    with router_for(made) as router:
        assert wrap(router, evolve(AT_ONCE, required=frozenset({"slow"}))) == ["fast", "slow"]


def test_a_straggler_still_waiting_for_a_worker_is_left_out_and_counts_for_nothing() -> None:
    """It says nothing about the service that its workers here are busy."""
    made = services("fast", "busy")
    with (
        hanging() as hang,
        router_for(made, breaker=OPENS_AT_ONCE, limit=1) as router,
    ):
        busy = router.relays["busy"]
        busy.prepare()
        busy.workers.submit(lambda: hang.release.wait(PATIENCE))
        assert wrap(router, evolve(ANY, straggler_wait=MOMENT)) == ["fast"]
        assert busy.breaker.state == "closed"
        hang.release.set()
        settle(busy)
    assert made["busy"].count("encrypt") == 0


# --- retries -------------------------------------------------------------------------------------


def retrying(attempts: int = 2) -> CallPolicy:
    """The patient policy with several attempts."""
    return evolve(PATIENT, attempts=attempts)


@pytest.mark.parametrize("kind", [Unavailable, DeadlineExceeded, Throttled])
def test_what_may_pass_is_tried_again_after_a_pause(kind: type[ServiceError]) -> None:
    """With jitter, so that clients do not come back together."""
    made, clock = services("a"), Clock()
    made["a"].queue("encrypt", raising(kind, "busy"))
    options = {"clock": clock, "sleep": clock.sleep}
    with router_for(made, policy=retrying(), options=options) as router:
        assert wrap(router) == ["a"]
    assert made["a"].count("encrypt") == 2
    assert len(clock.slept) == 1
    assert 0 <= clock.slept[0] <= 2


def test_attempts_are_bounded() -> None:
    """The last error is the one reported."""
    made, clock = services("a"), Clock()
    made["a"].always("encrypt", DOWN)
    options = {"clock": clock, "sleep": clock.sleep}
    with (
        router_for(made, policy=retrying(3), options=options) as router,
        pytest.raises(AllInstancesFailed) as caught,
    ):
        wrap(router)
    assert made["a"].count("encrypt") == 3
    assert failed(caught.value) == [("a", Unavailable)]


def test_a_service_that_asks_for_patience_gets_it() -> None:
    """``retry_after`` is waited for exactly, and throttling counts for nothing."""
    made, clock = services("a"), Clock()
    made["a"].queue("encrypt", raising(Throttled, "quota", retry_after=7.0))
    options = {"clock": clock, "sleep": clock.sleep}
    with router_for(made, policy=retrying(), options=options, breaker=OPENS_AT_ONCE) as router:
        assert wrap(router) == ["a"]
        assert router.relays["a"].breaker.snapshot().failures_in_window == 0
    assert clock.slept == [7.0]


def test_a_pause_that_would_outlast_the_deadline_is_not_made() -> None:
    """There would be no time left to use the answer."""
    made, clock = services("a"), Clock()
    made["a"].always("encrypt", raising(Throttled, "quota", retry_after=31.0))
    options = {"clock": clock, "sleep": clock.sleep}
    with (
        router_for(made, policy=retrying(5), options=options) as router,
        pytest.raises(AllInstancesFailed) as caught,
    ):
        wrap(router)
    assert failed(caught.value) == [("a", Throttled)]
    assert made["a"].count("encrypt") == 1
    assert clock.slept == []


def test_a_service_that_says_it_was_ready_long_ago_is_tried_again() -> None:
    """Clocks differ, and headers are what servers put into them."""
    made = services("a")
    made["a"].queue("encrypt", raising(Throttled, "quota", retry_after=-1.0))
    with router_for(made, policy=retrying()) as router:
        assert wrap(router) == ["a"]


@pytest.mark.parametrize("kind", [AccessDenied, KeyNotFound, KeyDisabled, ProviderBug])
def test_what_will_not_pass_is_not_tried_again(kind: type[ServiceError]) -> None:
    """Asking again would change nothing but the bill."""
    made, clock = services("a"), Clock()
    made["a"].always("encrypt", raising(kind, "no"))
    options = {"clock": clock, "sleep": clock.sleep}
    with (
        router_for(made, policy=retrying(5), options=options) as router,
        pytest.raises(AllInstancesFailed),
    ):
        wrap(router)
    assert made["a"].count("encrypt") == 1


def test_a_bad_ciphertext_is_not_tried_again() -> None:
    """No number of tries makes it authentic."""
    made, clock = services("a"), Clock()
    options = {"clock": clock, "sleep": clock.sleep}
    with router_for(made, policy=retrying(5), options=options) as router:
        (wrapped,) = wraps_of(router)
        with pytest.raises(IntegrityError):
            unwrap(router, [evolve(wrapped, data=bytes(60))])
    assert made["a"].count("decrypt") == 1


def test_each_attempt_asks_the_breaker() -> None:
    """A retry must not go through a breaker that the first attempt opened."""
    made, clock = services("a"), Clock()
    made["a"].always("encrypt", DOWN)
    options = {"clock": clock, "sleep": clock.sleep}
    with (
        router_for(made, policy=retrying(5), options=options, breaker=OPENS_AT_ONCE) as router,
        pytest.raises(AllInstancesFailed),
    ):
        wrap(router)
    assert made["a"].count("encrypt") == 1


def test_every_attempt_counts() -> None:
    """Two failed attempts are two pieces of evidence."""
    made, clock = services("a"), Clock()
    made["a"].always("encrypt", DOWN)
    options = {"clock": clock, "sleep": clock.sleep}
    with router_for(made, policy=retrying(2), options=options, clock=clock) as router:
        with pytest.raises(AllInstancesFailed):
            wrap(router)
        assert router.relays["a"].breaker.snapshot().failures_in_window == 2


# --- deadlines -----------------------------------------------------------------------------------


def hurried(**changes: Any) -> CallPolicy:
    """The patient policy but for these."""
    return evolve(PATIENT, **changes)


def test_an_attempt_that_had_its_time_counts() -> None:
    """A time-out is evidence if the service had ``attempt_timeout``."""
    made = services("a")
    policy = hurried(attempt_timeout=MOMENT)
    with hanging() as hang, router_for(made, policy=policy, breaker=OPENS_AT_ONCE) as router:
        made["a"].always("encrypt", hang.fault)
        with pytest.raises(AllInstancesFailed) as caught:
            wrap(router)
        assert re.search(r"a\.encrypt: no answer within \d\.\d s", str(caught.value))
        assert router.relays["a"].breaker.state == "open"


def test_an_attempt_cut_short_by_the_deadline_does_not_count() -> None:
    """The caller's haste says nothing about the service."""
    made = services("a")
    policy = hurried(deadline=MOMENT, attempt_timeout=Duration(2.0))
    with hanging() as hang, router_for(made, policy=policy, breaker=OPENS_AT_ONCE) as router:
        made["a"].always("encrypt", hang.fault)
        with pytest.raises(AllInstancesFailed) as caught:
            wrap(router)
        assert failed(caught.value) == [("a", DeadlineExceeded)]
        assert router.relays["a"].breaker.state == "closed"


def test_a_late_success_of_an_abandoned_call_changes_nothing() -> None:
    """The verdict was given when the time was up."""
    made = services("a")
    policy = hurried(attempt_timeout=MOMENT)
    with (
        hanging() as hang,
        router_for(made, policy=policy, breaker=OPENS_AT_ONCE, limit=1) as router,
    ):
        made["a"].always("encrypt", hang.fault)
        with pytest.raises(AllInstancesFailed):
            wrap(router)
        hang.release.set()
        settle(router.relays["a"])
        assert router.relays["a"].breaker.state == "open"


def test_a_call_that_never_got_a_worker_is_taken_back() -> None:
    """It neither counts nor runs later for nobody."""
    made = services("a")
    with (
        hanging() as hang,
        router_for(made, policy=hurried(deadline=MOMENT), breaker=OPENS_AT_ONCE, limit=1) as router,
    ):
        relay = router.relays["a"]
        relay.workers.submit(lambda: hang.release.wait(2.0))
        with pytest.raises(AllInstancesFailed):
            wrap(router)
        assert relay.workers.stats.queued == 0
        hang.release.set()
        settle(relay)
        assert relay.breaker.state == "closed"
    assert made["a"].count("encrypt") == 0


def test_loading_an_sdk_is_not_charged_to_the_service() -> None:
    """The first call may take as long as the import does, up to the deadline."""
    clock = Clock()
    made = services("a")
    loaded: list[int] = []

    def slow_import() -> None:
        loaded.append(1)
        clock.advance(20)

    object.__setattr__(made["a"], "prepare", slow_import)
    policy = hurried(attempt_timeout=Duration(3.0))
    options = {"clock": clock, "sleep": clock.sleep}
    with router_for(made, policy=policy, options=options, breaker=OPENS_AT_ONCE) as router:
        assert wrap(router) == ["a"]
        assert router.relays["a"].prepared
        assert router.relays["a"].breaker.state == "closed"
    assert loaded == [1]


# --- unwrapping: who is asked --------------------------------------------------------------------


def test_the_first_in_order_answers_and_nobody_else_is_asked() -> None:
    """One call per open while all is well."""
    made = services("a", "b", "c")
    with router_for(made) as router:
        assert unwrap(router, list(reversed(wraps_of(router)))) == DEK
    assert counts(made, "decrypt") == {"a": 1, "b": 0, "c": 0}


def test_an_instance_with_an_open_breaker_comes_last() -> None:
    """Health before preference."""
    made = services("a", "b")
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        wraps = wraps_of(router)
        router.relays["a"].breaker.fail(router.relays["a"].breaker.acquire())
        assert unwrap(router, wraps) == DEK
    assert counts(made, "decrypt") == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    "kind",
    [
        Unavailable,
        Throttled,
        AccessDenied,
        KeyNotFound,
        KeyDisabled,
        ProviderBug,
        InvalidCiphertext,
        InvalidRequest,
        UnsupportedOperation,
    ],
)
def test_the_first_failure_brings_in_the_next_at_once(kind: type[KMSError]) -> None:
    """Another recipient comes before a retry, and before ``hedge_after``."""
    made = services("a", "b")
    made["a"].always("decrypt", raising(kind, "no"))
    with router_for(made, policy=retrying(5)) as router:
        assert unwrap(router, wraps_of(router)) == DEK
    canary = kind is ProviderBug  # which tells whose fault it is
    assert counts(made, "decrypt") == {"a": 1 + canary, "b": 1}


def test_an_undocumented_error_brings_in_the_next_as_well() -> None:
    """A broken plugin does not make data unreadable that another service holds."""
    made = services("a", "b")
    made["a"].always("decrypt", raising(KeyError, "oops"))
    with router_for(made) as router:
        assert unwrap(router, wraps_of(router)) == DEK


def test_a_silent_one_is_hedged_after_a_while() -> None:
    """The caller waits for whoever answers first."""
    made = services("a", "b")
    policy = hurried(hedge_after=MOMENT)
    with hanging() as hang, router_for(made, policy=policy) as router:
        made["a"].always("decrypt", hang.fault)
        assert unwrap(router, wraps_of(router)) == DEK
        assert counts(made, "decrypt") == {"a": 1, "b": 1}


def test_a_call_that_waits_for_a_thread_turns_to_another_for_nothing() -> None:
    """All threads of an instance hang, and so would it; no service has been asked on its behalf."""
    made = services("a", "b")
    policy = hurried(hedge_after=MOMENT)
    with hanging() as hang, router_for(made, policy=policy, limit=1) as router:
        wraps = wraps_of(router)
        made["a"].always("decrypt", hang.fault)
        occupied = router.relays["a"].workers.submit(lambda: hang.release.wait(PATIENCE))
        while router.calls.hedges.spend():
            pass
        assert unwrap(router, wraps) == DEK
        hang.release.set()
        assert occupied.result(PATIENCE)
    assert counts(made, "decrypt") == {"a": 0, "b": 1}


def test_a_call_that_waited_until_the_breaker_opened_is_not_made() -> None:
    """It would only hang as well."""
    made = services("a")
    with hanging() as hang, router_for(made, breaker=OPENS_AT_ONCE, limit=1) as router:
        relay, wraps = router.relays["a"], wraps_of(router)
        occupied = relay.workers.submit(lambda: hang.release.wait(PATIENCE))
        call = router.calls.start(
            relay, "decrypt", lambda relay: relay.health(), router.deadline(), key=wraps[0].key_uri
        )
        open_breaker(relay)
        hang.release.set()
        assert occupied.result(PATIENCE)
        with pytest.raises(BreakerOpen):
            call.future.result(PATIENCE)
    assert made["a"].count("health") == 0


def test_a_silent_one_may_still_win() -> None:
    """Hedging asks another; it does not give up the first."""
    made = services("a", "b")
    asked = threading.Event()
    made["a"].always("decrypt", after(asked))
    with hanging() as hang, router_for(made, policy=hurried(hedge_after=MOMENT)) as router:

        def asked_and_silent(call: Any, proceed: Callable[[], Any]) -> Any:
            asked.set()
            return hang.fault(call, proceed)

        made["b"].always("decrypt", asked_and_silent)
        assert unwrap(router, wraps_of(router)) == DEK


def test_the_last_one_left_is_tried_again() -> None:
    """Where there is no other recipient, a retry is better than an error."""
    made, clock = services("a", "b"), Clock()
    made["a"].always("decrypt", DOWN)
    made["b"].queue("decrypt", DOWN)
    options = {"clock": clock, "sleep": clock.sleep}
    with router_for(made, policy=retrying(), options=options) as router:
        assert unwrap(router, wraps_of(router)) == DEK
    assert counts(made, "decrypt") == {"a": 1, "b": 2}


def test_an_instance_that_is_down_is_not_asked_for_its_other_keys() -> None:
    """The envelope names three versions of its key; one refusal is enough."""
    made = services("a", "b")
    with router_for(made) as router:
        wraps = wraps_of(router, "a")
        for _ in range(2):
            made["a"].store.rotate("default")
            wraps += wraps_of(router, "a")
        wraps += wraps_of(router, "b")
        made["a"].always("decrypt", DOWN)
        assert unwrap(router, wraps) == DEK
    assert counts(made, "decrypt") == {"a": 1, "b": 1}


def test_only_one_instance_is_asked_where_only_one_is_meant() -> None:
    """A new wrap is proved by the one that made it."""
    made = services("a", "b")
    with router_for(made) as router:
        assert unwrap(router, wraps_of(router), only="b") == DEK
    assert counts(made, "decrypt") == {"a": 0, "b": 1}


def test_a_refusal_is_final() -> None:
    """What one recipient must not do, another must not do either."""
    made = services("a", "b")
    made["a"].always("decrypt", raising(PolicyDenied, "no"))
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        with pytest.raises(PolicyDenied):
            unwrap(router, wraps_of(router))
        assert router.relays["a"].breaker.state == "closed"
    assert counts(made, "decrypt") == {"a": 1, "b": 0}


# --- unwrapping: nobody --------------------------------------------------------------------------


def test_nobody_who_holds_a_key_is_an_error_that_lists_the_keys() -> None:
    """Sorted and each once, so that an operator can compare."""
    foreign = [
        Ciphertext(b"x", uri) for uri in ("memory://z/k/1", "memory://y/k/1", "memory://z/k/1")
    ]
    made = services("a", "b")
    with router_for(made) as router, pytest.raises(NoMatchingRecipient) as caught:
        unwrap(router, foreign)
    assert caught.value.key_uris == ("memory://y/k/1", "memory://z/k/1")
    assert counts(made, "decrypt") == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    "foreign",
    [
        Ciphertext(b"x", "aws-kms://arn"),
        Ciphertext(b"x", "other://a/default/1"),
        Ciphertext(b"x", "memory://a/default/1", wrap_alg=0x0101),
    ],
    ids=["another type", "another type, same rest", "another algorithm"],
)
def test_a_recipient_of_another_kind_costs_no_call_at_all(foreign: Ciphertext) -> None:
    """Not even ``match`` is asked, and no thread started."""
    made = services("a")
    with router_for(made) as router:
        with pytest.raises(NoMatchingRecipient):
            unwrap(router, [foreign])
        stats = router.relays["a"].workers.stats
    assert made["a"].calls == ()
    assert (stats.busy, stats.idle) == (0, 0)


def test_when_every_answer_was_bad_the_envelope_is() -> None:
    """No detail: which one was bad helps only who forged it."""
    made = services("a", "b")
    with router_for(made) as router:
        wraps = [evolve(wrap, data=bytes(60)) for wrap in wraps_of(router)]
        with pytest.raises(IntegrityError) as caught:
            unwrap(router, wraps)
    assert type(caught.value) is IntegrityError
    assert counts(made, "decrypt") == {"a": 1, "b": 1}


def test_when_some_could_not_be_asked_nothing_is_proved() -> None:
    """One bad answer and one outage: every attempt is listed."""
    made = services("a", "b")
    made["b"].always("decrypt", DOWN)
    with router_for(made) as router:
        good_a, good_b = wraps_of(router)
        with pytest.raises(AllInstancesFailed) as caught:
            unwrap(router, [evolve(good_a, data=bytes(60)), good_b])
    assert failed(caught.value) == [("a", InvalidCiphertext), ("b", Unavailable)]


def test_a_deadline_that_has_passed_asks_nobody() -> None:
    """A suspended machine wakes up late."""
    made = services("a")

    class Leaping(Clock):
        def __call__(self) -> float:
            self.advance(100)
            return self.now

    with (
        router_for(made, options={"clock": Leaping()}) as router,
        pytest.raises(DeadlineExceeded, match="before any instance"),
    ):
        unwrap(router, wraps_of(router))
    assert made["a"].count("decrypt") == 0


def test_all_silent_ends_at_the_deadline() -> None:
    """However many there are to hedge with."""
    made = services("a", "b", "c")
    policy = hurried(deadline=Duration(0.2), hedge_after=MOMENT)
    with hanging() as hang, router_for(made, policy=policy) as router:
        wraps = wraps_of(router)
        for provider in made.values():
            provider.always("decrypt", hang.fault)
        with pytest.raises(AllInstancesFailed) as caught:
            unwrap(router, wraps)
    assert {kind for _, kind in failed(caught.value)} == {DeadlineExceeded}


def test_a_silent_one_that_had_its_time_counts_and_the_next_is_asked() -> None:
    """A time-out is a failure like any other."""
    made = services("a", "b")
    policy = hurried(attempt_timeout=WHILE, deadline=Duration(2.5))
    with hanging() as hang, router_for(made, policy=policy, breaker=OPENS_AT_ONCE) as router:
        made["a"].always("decrypt", hang.fault)
        assert unwrap(router, wraps_of(router)) == DEK
        assert router.relays["a"].breaker.state == "open"


# --- unwrapping: what a forged envelope can cost --------------------------------------------------


def bad_wraps(router: Router, number: int) -> list[Ciphertext]:
    """Blobs that do not authenticate, for as many versions of one trusted key."""
    store = relays_of(router)[0].provider.store  # type: ignore[attr-defined]
    for _ in range(number - 1):
        store.rotate("default")
    uri = relays_of(router)[0].key_uri
    return [Ciphertext(bytes(60), f"{uri}/{version + 1}") for version in range(number)]


@pytest.mark.parametrize(("threshold", "calls"), [(1, 4), (4, 4), (6, 6)])
def test_bad_answers_are_bounded(threshold: int, calls: int) -> None:
    """Thirty-two bad blobs cost four calls, or as many as a threshold needs."""
    made = services("a")
    with router_for(made) as router, pytest.raises(IntegrityError):
        unwrap(router, bad_wraps(router, 32), threshold=threshold)
    assert made["a"].count("decrypt") == calls


def test_bad_answers_are_bounded_with_hedging_too() -> None:
    """Those under way may turn out bad, so they count in advance."""
    made = services("a")
    policy = hurried(hedge_after=Duration(0.001))
    with hanging() as hang, router_for(made, policy=policy) as router:
        wraps = bad_wraps(router, 32)
        fourth = threading.Event()

        def count_and_hang(call: Any, proceed: Callable[[], Any]) -> Any:
            if call.number == 4:
                fourth.set()
                hang.release.set()
            return hang.fault(call, proceed)

        made["a"].always("decrypt", count_and_hang)
        with pytest.raises(IntegrityError):
            unwrap(router, wraps)
        assert fourth.is_set()
    assert made["a"].count("decrypt") == 4


def test_answers_that_prove_nothing_do_not_use_up_the_bound() -> None:
    """Five services that are down do not keep the sixth from being asked."""
    made = services(*"abcdef")
    for name in "abcde":
        made[name].always("decrypt", DOWN)
    with router_for(made) as router:
        assert unwrap(router, wraps_of(router)) == DEK


def test_a_bad_ciphertext_is_no_fault_of_the_service() -> None:
    """Whoever can submit garbage could otherwise switch a service off for everybody."""
    made = services("a")
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        (wrapped,) = wraps_of(router)
        for _ in range(10):
            with pytest.raises(IntegrityError):
                unwrap(router, [evolve(wrapped, data=bytes(60))])
        assert router.relays["a"].breaker.state == "closed"


def test_a_wrong_answer_that_authenticates_is_bad_as_well() -> None:
    """Whether a DEK is the right one is for the caller to say."""
    made = services("a", "b")
    made["a"].always("decrypt", returning(bytearray(32)))

    def accept(_: Ciphertext, dek: bytes | bytearray) -> bytes:
        if dek != DEK:
            raise InvalidCiphertext("another key")
        return bytes(dek)

    with router_for(made) as router:
        assert router.unwrap(bound(wraps_of(router)), accept) == DEK
        made["b"].always("decrypt", returning(bytearray(32)))
        with pytest.raises(IntegrityError):
            router.unwrap(bound(wraps_of(router)), accept)


def test_the_right_key_in_an_altered_envelope_ends_the_search() -> None:
    """No other recipient can make it whole."""
    made = services("a", "b")

    def refuse(_: Ciphertext, dek: bytes | bytearray) -> bytes:
        raise IntegrityError

    with router_for(made) as router, pytest.raises(IntegrityError):
        router.unwrap(bound(wraps_of(router)), refuse)
    assert counts(made, "decrypt") == {"a": 1, "b": 0}


# --- what is wiped -------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["accepted", "refused"])
def test_an_answer_is_wiped_once_it_was_used(outcome: str) -> None:
    """Accepted or not."""
    made = services("a")
    answer = bytearray(DEK)
    made["a"].always("decrypt", returning(answer))

    def accept(_: Ciphertext, dek: bytes | bytearray) -> bytes:
        assert dek == DEK
        if outcome == "refused":
            raise IntegrityError
        return bytes(dek)

    with router_for(made) as router:
        wraps = wraps_of(router)
        if outcome == "accepted":
            assert router.unwrap(bound(wraps), accept) == DEK
        else:
            with pytest.raises(IntegrityError):
                router.unwrap(bound(wraps), accept)
    assert answer == bytes(32)


def late(hang: Hang, answer: object) -> Fault:
    """Hang, then answer this."""

    def fault(call: Any, _proceed: Callable[[], Any]) -> Any:
        return hang.fault(call, lambda: answer)

    return fault


def test_what_the_loser_of_a_race_brings_is_wiped() -> None:
    """Nobody would do it otherwise."""
    made = services("a", "b")
    answer = bytearray(DEK)
    with hanging() as hang, router_for(made, policy=hurried(hedge_after=MOMENT), limit=1) as router:
        made["a"].always("decrypt", late(hang, answer))
        assert unwrap(router, wraps_of(router)) == DEK
        hang.release.set()
        settle(router.relays["a"])
    assert answer == bytes(32)


def test_what_comes_after_its_time_out_is_wiped() -> None:
    """Also when the whole call failed."""
    made = services("a")
    answer = bytearray(DEK)
    policy = hurried(attempt_timeout=MOMENT)
    with hanging() as hang, router_for(made, policy=policy, limit=1) as router:
        made["a"].always("decrypt", late(hang, answer))
        with pytest.raises(AllInstancesFailed):
            unwrap(router, wraps_of(router))
        hang.release.set()
        settle(router.relays["a"])
    assert answer == bytes(32)


def test_a_data_key_that_comes_too_late_is_wiped() -> None:
    """Its plaintext half, that is."""
    made = services("a")
    with hanging() as hang, router_for(made, policy=hurried(attempt_timeout=MOMENT), limit=1) as r:
        data_key = DataKey(bytearray(DEK), wraps_of(r)[0])
        made["a"].always("generate_data_key", late(hang, data_key))
        with pytest.raises(AllInstancesFailed):
            r.first("generate_data_key", ["a"], lambda relay: relay.generate_data_key(CONTEXT))
        hang.release.set()
        settle(r.relays["a"])
    assert data_key.plaintext == bytes(32)


def test_a_loser_that_fails_late_is_nobodys_business() -> None:
    """Its error goes to the breaker and nowhere else."""
    made = services("a", "b")
    with hanging() as hang, router_for(made, policy=hurried(hedge_after=MOMENT), limit=1) as router:

        def fails_late(call: Any, proceed: Callable[[], Any]) -> Any:
            hang.fault(call, proceed)
            raise Unavailable("down")

        made["a"].always("decrypt", fails_late)
        assert unwrap(router, wraps_of(router)) == DEK
        hang.release.set()
        settle(router.relays["a"])
        assert router.relays["a"].breaker.snapshot().failures_in_window == 1


# --- losers that never answer --------------------------------------------------------------------


class Shifted(Clock):
    """Real time, for what really waits, and as much more as it is told."""

    def __call__(self) -> float:
        return time.monotonic() + self.now


def test_a_loser_that_never_answers_counts_as_a_time_out_at_the_next_call() -> None:
    """A service that hangs is found out even if a faster one always wins."""
    clock, made = Shifted(), services("a", "b")
    policy = hurried(hedge_after=MOMENT, attempt_timeout=Duration(60.0), deadline=Duration(90.0))
    options = {"clock": clock}
    with (
        hanging() as hang,
        router_for(
            made, policy=policy, options=options, breaker=OPENS_AT_ONCE, clock=clock
        ) as router,
    ):
        wraps = wraps_of(router)
        made["a"].always("decrypt", hang.fault)
        assert unwrap(router, wraps) == DEK
        clock.advance(30)
        assert wrap(router) == ["a", "b"]
        states = [router.relays["a"].breaker.state]
        clock.advance(31)
        unwrap(router, wraps, only="b")
        states.append(router.relays["a"].breaker.state)
    assert states == ["closed", "open"]


def test_a_loser_that_was_never_started_counts_for_nothing() -> None:
    """It leaves the queue, and its permit goes back."""
    made = services("a", "b")
    with (
        hanging() as hang,
        router_for(
            made, policy=hurried(hedge_after=MOMENT), breaker=OPENS_AT_ONCE, limit=1
        ) as router,
    ):
        wraps = wraps_of(router)
        relay = router.relays["a"]
        relay.workers.submit(lambda: hang.release.wait(PATIENCE))
        assert unwrap(router, wraps) == DEK
        assert relay.workers.stats.queued == 0
        hang.release.set()
        settle(relay)
        assert relay.breaker.state == "closed"
    assert made["a"].count("decrypt") == 0


# --- breakers ------------------------------------------------------------------------------------


def spend_last_resort(router: Router) -> None:
    """Use up what may be tried in spite of open breakers."""
    assert router.calls.last_resort.take()


def open_breaker(relay: Relay) -> None:
    """Let one failure open it."""
    relay.breaker.fail(relay.breaker.acquire())
    assert relay.breaker.state == "open"


def test_an_open_breaker_costs_no_thread_hop() -> None:
    """It is asked before anything is handed to a worker."""
    made = services("a", "b")
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        relay = router.relays["a"]
        open_breaker(relay)
        assert wrap(router) == ["b"]
        spend_last_resort(router)
        with pytest.raises(AllInstancesFailed) as caught:
            unwrap(router, [Ciphertext(b"x", f"{relay.key_uri}/1")], only="a")
        stats = relay.workers.stats
    assert failed(caught.value) == [("a", BreakerOpen)]
    assert caught.value.attempts[0].error.instance == "a"
    assert (stats.busy, stats.idle, stats.queued) == (0, 0, 0)
    assert made["a"].calls == ()


def test_an_open_breaker_lets_a_probe_through_in_time() -> None:
    """Two successes close it again."""
    clock, made = Clock(), services("a")
    with router_for(made, breaker=OPENS_AT_ONCE, clock=clock, options={"clock": clock}) as router:
        open_breaker(router.relays["a"])
        states = []
        for seconds in (61, 0):
            clock.advance(seconds)
            assert wrap(router) == ["a"]
            states.append(router.relays["a"].breaker.state)
    assert states == ["half-open", "closed"]


def half_open(router: Router, clock: Clock) -> None:
    """The first relay waits for a probe."""
    open_breaker(relays_of(router)[0])
    clock.advance(61)


@pytest.mark.parametrize(
    "kind",
    [
        Throttled,
        PolicyDenied,
        InvalidRequest,
        UnsupportedOperation,
        pytest.param(
            ConfigError,
        ),
    ],
)
def test_what_says_nothing_about_the_service_closes_no_breaker(kind: type[KMSError]) -> None:
    """Only an answer of the service is a successful probe."""
    clock, made = Clock(), services("a")
    policy = evolve(OPENS_AT_ONCE, success_threshold=1)
    with router_for(made, breaker=policy, clock=clock, options={"clock": clock}) as router:
        half_open(router, clock)
        made["a"].always("encrypt", raising(kind, "no"))
        with pytest.raises(KMSError):
            wrap(router)
        assert router.relays["a"].breaker.state == "half-open"


def test_a_foreign_recipient_closes_no_breaker() -> None:
    """Whether a name is ours is told here; the service was not asked."""
    clock, made = Clock(), services("a")
    policy = evolve(OPENS_AT_ONCE, success_threshold=1)
    with router_for(made, breaker=policy, clock=clock, options={"clock": clock}) as router:
        half_open(router, clock)
        with pytest.raises(KMSError):
            unwrap(router, [Ciphertext(b"x", "memory://elsewhere/key/1")])
        assert router.relays["a"].breaker.state != "closed"


@pytest.mark.parametrize("kind", [AccessDenied, KeyDisabled, InvalidCiphertext])
def test_an_answer_is_an_answer_even_if_it_is_no(kind: type[KMSError]) -> None:
    """The service is up: the key or the caller is to blame."""
    clock, made = Clock(), services("a")
    policy = evolve(OPENS_AT_ONCE, success_threshold=1)
    with router_for(made, breaker=policy, clock=clock, options={"clock": clock}) as router:
        half_open(router, clock)
        made["a"].always("encrypt", raising(kind, "no"))
        with pytest.raises(KMSError):
            wrap(router)
        assert router.relays["a"].breaker.state == "closed"


def test_a_call_that_ends_the_interpreter_leaves_the_breaker_as_it_was() -> None:
    """An interrupt is no evidence, and no permit is lost."""
    clock, made = Clock(), services("a")
    made["a"].queue("encrypt", raising(KeyboardInterrupt))
    policy = evolve(OPENS_AT_ONCE, success_threshold=1)
    with router_for(made, breaker=policy, clock=clock, options={"clock": clock}) as router:
        half_open(router, clock)
        with pytest.raises(KeyboardInterrupt):
            wrap(router)
        assert wrap(router) == ["a"]


# --- direct use ----------------------------------------------------------------------------------


def encrypt_first(router: Router, *names: str, **options: Any) -> str:
    """Who encrypts if asked in this order (default: the configured one)."""
    done = router.first(
        "encrypt",
        names or list(router.relays),
        lambda relay: relay.encrypt(b"x", CONTEXT),
        **options,
    )
    return str(done.instance)


def test_direct_calls_ask_one_after_the_other() -> None:
    """The first success ends it."""
    made = services("a", "b", "c")
    made["a"].always("encrypt", DOWN)
    with router_for(made) as router:
        assert encrypt_first(router) == "b"
    assert counts(made, "encrypt") == {"a": 1, "b": 1, "c": 0}


def test_direct_calls_never_fall_back_to_weaker_protection_unasked() -> None:
    """Data meant for an HSM does not end up under a software key."""
    made = {
        "hsm": service("hsm", protection="hsm"),
        "soft": service("soft"),
        "spare": service("spare", protection="hsm"),
        "disk": service("disk", protection="local"),
    }
    made["hsm"].always("encrypt", DOWN)
    with router_for(made) as router:
        assert encrypt_first(router) == "spare"
        made["spare"].always("encrypt", DOWN)
        with pytest.raises(AllInstancesFailed, match="no instance could encrypt") as caught:
            encrypt_first(router)
        assert encrypt_first(router, allow_weaker=True) == "soft"
    assert failed(caught.value) == [("hsm", Unavailable), ("spare", Unavailable)]
    assert made["disk"].count("encrypt") == 0


def test_direct_calls_may_fall_back_to_stronger_protection() -> None:
    """What was meant for software is no worse off in an HSM."""
    made = {"soft": service("soft"), "hsm": service("hsm", protection="hsm")}
    made["soft"].always("encrypt", DOWN)
    with router_for(made) as router:
        assert encrypt_first(router) == "hsm"


def test_direct_calls_go_on_when_one_is_silent() -> None:
    """After its ``attempt_timeout``."""
    made = services("a", "b")
    with hanging() as hang, router_for(made, policy=hurried(attempt_timeout=WHILE)) as router:
        made["a"].always("encrypt", hang.fault)
        assert encrypt_first(router) == "b"


def test_direct_calls_share_one_deadline() -> None:
    """Whoever used it up leaves nothing for the next."""
    clock, made = Clock(), services("a", "b")

    def slow(_call: object, _proceed: object) -> Any:
        clock.advance(PATIENCE + 1)
        raise Unavailable("down")

    made["a"].always("encrypt", slow)
    with (
        router_for(made, options={"clock": clock}) as router,
        pytest.raises(AllInstancesFailed) as caught,
    ):
        encrypt_first(router)
    assert failed(caught.value) == [("a", Unavailable)]
    assert caught.value.attempts[0].seconds == PATIENCE + 1
    assert made["b"].count("encrypt") == 0


@pytest.mark.parametrize("kind", [PolicyDenied, InvalidRequest, InvalidCiphertext])
def test_direct_calls_do_not_evade_a_refusal(kind: type[KMSError]) -> None:
    """Nobody else is asked."""
    made = services("a", "b")
    made["a"].always("encrypt", raising(kind, "no"))
    with router_for(made) as router, pytest.raises(kind):
        encrypt_first(router)
    assert made["b"].count("encrypt") == 0


def test_direct_calls_skip_an_open_breaker() -> None:
    """As envelopes do."""
    with router_for(services("a", "b"), breaker=OPENS_AT_ONCE) as router:
        open_breaker(router.relays["a"])
        assert encrypt_first(router) == "b"


# --- asking everybody ----------------------------------------------------------------------------


def test_everybody_is_asked_past_the_breakers() -> None:
    """Somebody wants to know; no user pays for it."""
    made = services("a", "b")
    made["b"].always("health", DOWN)
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        open_breaker(router.relays["a"])
        answers = router.ask_all(Relay.health, PATIENCE)
    assert list(answers) == ["a", "b"]
    assert isinstance(answers["a"][0], Health)
    assert isinstance(answers["b"][0], Unavailable)


def test_who_does_not_answer_in_time_is_said_to_be_late() -> None:
    """The others' answers are there all the same."""
    made = services("a", "b")
    with hanging() as hang, router_for(made) as router:
        made["a"].always("health", hang.fault)
        answers = router.ask_all(Relay.health, WHILE)
        assert isinstance(answers["a"][0], DeadlineExceeded)
        assert answers["a"][1] >= WHILE
        assert isinstance(answers["b"][0], Health)


def test_who_holds_which_key_is_asked_of_their_own_kind_only() -> None:
    """A foreign URI costs no call."""
    made = {**services("a", "b"), "c": service("c", kind=OtherProvider)}
    uris = ["memory://a/default/1", "memory://b/default", "memory://z/x", "other://c/default/1"]
    with router_for(made) as router:
        assert router.holders(uris, ["a", "b", "c"], router.deadline()) == {
            "a": {"memory://a/default/1"},
            "b": {"memory://b/default"},
            "c": {"other://c/default/1"},
        }
    assert counts(made, "match") == {"a": 3, "b": 3, "c": 1}


def test_who_cannot_tell_what_it_holds_is_left_out() -> None:
    """An alias that cannot be resolved now is no proof of absence."""
    made = services("a", "b")
    made["a"].always("match", DOWN)
    with router_for(made) as router:
        assert router.holders(["memory://a/default"], ["a", "b"], router.deadline()) == {"b": set()}


# --- what errors carry ---------------------------------------------------------------------------


def test_errors_of_the_router_carry_the_correlation_id() -> None:
    """As those of providers do: time-outs, refusals of the breaker, and the sum of them."""
    made = services("slow", "refused")
    token = correlation_id.set("request-7")
    try:
        with (
            hanging() as hang,
            router_for(made, policy=hurried(attempt_timeout=MOMENT), breaker=OPENS_AT_ONCE) as r,
        ):
            made["slow"].always("encrypt", hang.fault)
            open_breaker(r.relays["refused"])
            spend_last_resort(r)
            with pytest.raises(AllInstancesFailed) as caught:
                wrap(r)
            with pytest.raises(NoMatchingRecipient) as foreign:
                unwrap(r, [Ciphertext(b"x", "aws-kms://arn")])
    finally:
        correlation_id.reset(token)
    assert failed(caught.value) == [("slow", DeadlineExceeded), ("refused", BreakerOpen)]
    attempts = [attempt.error for attempt in caught.value.attempts]
    errors = [caught.value, *attempts, foreign.value]
    assert [error.correlation_id for error in errors] == ["request-7"] * 4


def test_closing_while_a_call_is_queued_ends_it_with_an_error_of_the_library() -> None:
    """Whoever waits in another thread is told so."""
    made = services("a")
    with ExitStack() as stack:
        hang = stack.enter_context(hanging())
        router = stack.enter_context(router_for(made, limit=1))
        relay = router.relays["a"]
        relay.prepare()
        relay.workers.submit(lambda: hang.release.wait(PATIENCE))
        outcome: list[BaseException] = []

        def seal() -> None:
            try:
                wrap(router)
            except BaseException as exc:  # noqa: BLE001  whatever it is, it is looked at
                outcome.append(exc)

        thread = threading.Thread(target=seal)
        queued = threading.Event()
        submit = relay.workers.submit

        def submit_and_tell(call: Callable[[], Any]) -> Any:
            try:
                return submit(call)
            finally:
                queued.set()

        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            relay.workers, "submit", submit_and_tell
        )
        thread.start()
        assert queued.wait(PATIENCE)
        relay.close()
        thread.join(PATIENCE)
    (error,) = outcome
    assert isinstance(error, KMSError)


def test_a_call_that_no_worker_takes_gives_its_permit_back() -> None:
    """A probe that was never made must not keep the next one waiting."""
    clock, made = Clock(), services("a")
    with router_for(made, breaker=OPENS_AT_ONCE, clock=clock, options={"clock": clock}) as router:
        half_open(router, clock)
        router.relays["a"].workers.close()
        with pytest.raises(InvalidRequest, match="are closed"):
            wrap(router)
        assert router.relays["a"].breaker.retry_after == 0


def test_a_corrupted_wrap_is_not_noticed_by_the_router() -> None:
    """Whether a wrap holds what it should is proved by unwrapping it: that is the caller's."""
    made = services("a")
    made["a"].always("encrypt", corrupting())
    with router_for(made) as router:
        assert wrap(router) == ["a"]


# --- when nobody is left, and what is not asked at all --------------------------------------------


def test_last_resort_unwraps_although_every_breaker_is_open() -> None:
    """Once: the next call within the second is refused."""
    made, clock = services("a"), Clock()
    with router_for(made, breaker=OPENS_AT_ONCE, clock=clock, options={"clock": clock}) as router:
        (wrapped,) = wraps_of(router)
        open_breaker(router.relays["a"])
        assert unwrap(router, [wrapped])
        router.relays["a"].breaker.force("closed")
        router.relays["a"].breaker.force(None)
        open_breaker(router.relays["a"])
        with pytest.raises(AllInstancesFailed) as caught:
            unwrap(router, [wrapped])
        assert failed(caught.value) == [("a", BreakerOpen)]
        clock.advance(1)
        assert unwrap(router, [wrapped])
    assert made["a"].count("decrypt") == 2


def test_last_resort_is_there_when_others_are_down() -> None:
    """A breaker stands in the way of the one that would answer, and an outage of the other."""
    made = services("a", "b")
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        wraps = wraps_of(router)
        open_breaker(router.relays["b"])
        made["a"].always("decrypt", DOWN)
        assert unwrap(router, wraps) == DEK


def test_last_resort_goes_through_all_who_were_refused() -> None:
    """The first one is down indeed, the second is being probed, and the third is well."""
    made = services("a", "b", "c")
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        wraps = wraps_of(router)
        for name in made:
            open_breaker(router.relays[name])
        router.relays["b"].breaker.acquire(early=True)
        made["a"].always("decrypt", DOWN)
        assert unwrap(router, wraps) == DEK
    assert counts(made, "decrypt") == {"a": 1, "b": 0, "c": 1}


def test_last_resort_is_not_for_bad_wraps() -> None:
    """Whoever sends them would use it up for everybody."""
    made = services("a", "b")
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        wraps = wraps_of(router)
        open_breaker(router.relays["b"])
        made["a"].always("decrypt", raising(InvalidCiphertext, "bad"))
        with pytest.raises(AllInstancesFailed):
            unwrap(router, wraps)
        assert router.calls.last_resort.take()


def test_last_resort_wraps_where_the_quorum_would_fail() -> None:
    """Better a late probe than a refusal to write."""
    made = services("a", "b")
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        for relay in router.relays.values():
            open_breaker(relay)
        assert sorted(wrap(router)) == ["a", "b"]
        assert {relay.breaker.state for relay in router.relays.values()} == {"half-open"}


def test_last_resort_is_not_for_those_who_fell_behind_others() -> None:
    """While somebody answers, an open breaker stays open."""
    made = services("a", "b")
    with router_for(made, breaker=OPENS_AT_ONCE) as router:
        open_breaker(router.relays["a"])
        assert wrap(router) == ["b"]
    assert made["a"].count("encrypt") == 0


@pytest.mark.parametrize("error", [AccessDenied, KeyNotFound, KeyDisabled])
def test_refusal_is_not_asked_for_again_at_once(error: type[KMSError]) -> None:
    """Permission and key state are not a matter of trying; after the cool-down it is asked anew."""
    made, clock = services("a", "b"), Clock()
    made["a"].queue("encrypt", raising(error, "no"))
    with router_for(made, clock=clock, options={"clock": clock}) as router:
        assert wrap(router) == ["b"]
        result = router.wrap(parts(*made), ANY)
        (attempt,) = result.failures
        assert type(attempt.error) is error
        assert "not asked again for 1.0 s" in str(attempt.error)
        assert made["a"].count("encrypt") == 1
        clock.advance(1)
        assert sorted(wrap(router)) == ["a", "b"]
        assert router.relays["a"].breaker.state == "closed"


def test_throttled_instance_is_left_alone_while_others_can_answer() -> None:
    """For as long as it asked; where there is no other, the call is made all the same."""
    made, clock = services("a", "b"), Clock()
    options = {"clock": clock, "sleep": clock.sleep}
    with router_for(made, clock=clock, options=options) as router:
        wraps = wraps_of(router)
        made["a"].queue("decrypt", raising(Throttled, "busy", retry_after=5.0))
        assert unwrap(router, wraps)
        asked = made["a"].count("decrypt")
        assert unwrap(router, wraps)
        assert made["a"].count("decrypt") == asked
        assert unwrap(router, wraps[:1])
        assert made["a"].count("decrypt") == asked + 1
        clock.advance(5)
        assert unwrap(router, wraps)
        assert made["a"].count("decrypt") == asked + 2


def test_retries_are_bounded_by_a_budget() -> None:
    """An outage is not answered with twice the calls: a burst of ten, then one in ten."""
    made, clock = services("a"), Clock()
    made["a"].always("encrypt", DOWN)
    never_opens = BreakerPolicy(failure_threshold=10_000)
    options = {"clock": clock, "sleep": clock.sleep}
    with router_for(made, policy=retrying(2), options=options, breaker=never_opens) as router:
        for _ in range(200):
            with pytest.raises(AllInstancesFailed):
                wrap(router)
    assert 200 + 10 + 19 <= made["a"].count("encrypt") <= 200 + 10 + 21


def test_slow_instance_is_asked_after_a_faster_one() -> None:
    """One whose usual answer would make every open hedge is not asked first."""
    made, clock = services("a", "b"), Clock()
    policy = evolve(PATIENT, hedge_after=Duration(1.0))
    with router_for(made, clock=clock, policy=policy, options={"clock": clock}) as router:
        wraps = wraps_of(router)
        router.calls.standing(router.relays["a"]).took(1.5)
        unwrap(router, wraps)
    assert (made["a"].count("decrypt"), made["b"].count("decrypt")) == (0, 1)
