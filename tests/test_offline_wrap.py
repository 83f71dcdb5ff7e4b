"""``offline_wrap``: sealing to an instance's public key, without or in place of its service."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import pytest
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms_core import (
    AccessDenied,
    AllInstancesFailed,
    BreakerPolicy,
    Ciphertext,
    ConfigError,
    Context,
    DeadlineExceeded,
    Event,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    Kms,
    KMSError,
    PolicyDenied,
    PublicKey,
    ServiceError,
    Throttled,
    Unavailable,
    hookimpl,
)
from kms_core.asymmetric import PUBLIC_KEY_MAX_AGE
from kms_core.relay import Relay
from kms_core.testing import Call, Fault, Faulty, MemoryProvider, MemoryStore, raising
from kms_core.testing.material import KeyKind
from kms_core.testing.servers import Failure
from tests.support import PATIENCE, PATIENT, Clock, client_for, module, service

DATA = b"data"
CONTEXT = {"tenant": "42"}
OUTAGES = [Unavailable("down"), DeadlineExceeded("slow"), Throttled("busy")]
REFUSALS = [KeyDisabled("disabled"), AccessDenied("no"), KeyNotFound("gone")]


def by_code(value: object) -> str:
    """The name of an error among the parameters of a test."""
    return str(getattr(value, "code", value))


@contextmanager
def learning(kms: Kms) -> Iterator[None]:
    """A block in which ``rsa`` is asked for its public key; ends when that has ended."""
    relay = kms._router.relays["rsa"]
    ended, learn = threading.Event(), relay.learn_public_key

    def tell() -> None:
        try:
            learn()
        finally:
            ended.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "learn_public_key", tell)
        yield
        assert ended.wait(PATIENCE)


class Watch:
    """Every event so far, from whatever thread."""

    def __init__(self) -> None:
        self._seen: list[Event] = []

        @hookimpl
        def kms_event(event: Event) -> None:
            self._seen.append(event)

        self.module: ModuleType = module("watch", kms_event=kms_event)

    def of(self, operation: str, outcome: str | None = None) -> list[Event]:
        """Those of this operation, and this outcome if one is given, oldest first."""
        return [
            event
            for event in self._seen
            if event.operation == operation and outcome in {None, event.outcome}
        ]

    def with_outcome(self, outcome: str) -> list[Event]:
        """Those that ended so, oldest first."""
        return [event for event in self._seen if event.outcome == outcome]


class Services:
    """An instance ``rsa``, to whose public key anybody can wrap, and symmetric others."""

    def __init__(self, *others: str, kind: KeyKind = "RSA-OAEP") -> None:
        self.store = MemoryStore("rsa", keys=())
        self.store.create("default", kind)
        self.rsa = service("rsa", store=self.store)
        self.others = {name: service(name) for name in others}
        self.all: dict[str, Faulty] = {"rsa": self.rsa, **self.others}
        self.watch = Watch()
        self.clock = Clock()

    @contextmanager
    def client(self, offline_wrap: str = "fallback", **settings: Any) -> Iterator[Kms]:
        """A client of all, of which ``rsa`` has this policy; its time stands still."""
        instances: Mapping[str, Any] = {"rsa": {"offline_wrap": offline_wrap}}
        with client_for(
            self.all,
            instances=instances,
            modules={"watch": self.watch.module},
            options={"clock": self.clock},
            **{"min_recipients": 1, **settings},
        ) as kms:
            yield kms

    def learn(self, kms: Kms) -> None:
        """Seal something, and wait until the public key is known."""
        with learning(kms):
            kms.seal(DATA)

    def down(self) -> None:
        """``rsa`` cannot be reached."""
        self.store.panel.fail(Failure.REFUSE)

    def up(self) -> None:
        """It can again."""
        self.store.panel.heal()

    def offline_wraps(self, kms: Kms, data: bytes = DATA) -> int:
        """How many keys were wrapped offline while something was sealed."""
        before = len(self.watch.of("wrap_offline", "ok"))
        kms.seal(data, CONTEXT)
        return len(self.watch.of("wrap_offline", "ok")) - before


@pytest.fixture
def services() -> Services:
    """``rsa`` and a symmetric one."""
    return Services("aes")


def missing(kms: Kms, sealed: bytes) -> bool:
    """Whether the envelope says that somebody should hold its key and does not."""
    return bool(kms.inspect(sealed).missing)


# --- policies ------------------------------------------------------------------------------------


def test_never_leaves_out_who_is_away(services: Services) -> None:
    """The default; the public key is not even asked for."""
    with services.client("never") as kms:
        kms.seal(DATA)
        services.down()
        assert missing(kms, kms.seal(DATA))
        assert services.rsa.count("public_key") == 0
        assert not services.watch.of("wrap_offline")


def test_fallback_asks_the_service_while_it_answers(services: Services) -> None:
    """The public key is learnt on the side, once."""
    with services.client() as kms:
        services.learn(kms)
        for _ in range(3):
            assert services.offline_wraps(kms) == 0
        assert services.rsa.count("encrypt") == 4
        assert services.rsa.count("public_key") == 1


def test_fallback_seals_to_the_known_key_in_an_outage(services: Services) -> None:
    """Nobody is missing, observers are told, and it opens through the service later."""
    with services.client() as kms:
        services.learn(kms)
        services.down()
        wraps = len(services.watch.of("wrap_offline", "ok"))
        sealed = kms.seal(DATA, CONTEXT)
        (told,) = services.watch.of("wrap_offline", "ok")[wraps:]
        assert told.instance == "rsa"
        assert told.key_uri == "memory://rsa/default"
        assert services.watch.of("seal")[-1].outcome == "ok"
        assert not missing(kms, sealed)
        assert [each.key_uri for each in kms.inspect(sealed).recipients] == [
            "memory://aes/default/1",
            "memory://rsa/default/1",
        ]
        services.up()
        services.others["aes"].always("decrypt", raising(Unavailable, "down"))
        assert kms.open(sealed, CONTEXT) == DATA


def test_sealed_offline_alone_opens_with_its_context_only() -> None:
    """The context is bound as the service would bind it."""
    services = Services()
    with services.client() as kms:
        services.learn(kms)
        services.down()
        sealed = kms.seal(DATA, CONTEXT)
        with pytest.raises(AllInstancesFailed):
            kms.open(sealed, CONTEXT)  # the private key is where it was
        services.up()
        assert kms.open(sealed, CONTEXT) == DATA
        with pytest.raises(KMSError):
            kms.open(sealed, {"tenant": "43"})


def test_always_asks_for_the_key_and_for_nothing_else(services: Services) -> None:
    """Not even in the first seal; opening is for the service."""
    with services.client("always") as kms:
        sealed = [kms.seal(DATA, CONTEXT) for _ in range(3)]
        assert services.rsa.count("public_key") == 1
        assert services.rsa.count("encrypt") == 0
        services.others["aes"].always("decrypt", raising(Unavailable, "down"))
        assert [kms.open(each, CONTEXT) for each in sealed] == [DATA] * 3
        assert services.rsa.count("decrypt") == 3


def test_always_goes_on_in_an_outage(services: Services) -> None:
    """With the key it has; the service is not asked."""
    with services.client("always") as kms:
        kms.seal(DATA)
        services.down()
        asked = services.rsa.calls
        assert not missing(kms, kms.seal(DATA))
        assert services.rsa.calls == asked


@pytest.mark.parametrize("offline_wrap", ["fallback", "always"])
def test_outage_before_the_key_was_known_leaves_it_out(
    services: Services, offline_wrap: str
) -> None:
    """There is nothing to wrap to; once the service is back, there is."""
    services.down()
    with services.client(offline_wrap) as kms:
        assert missing(kms, kms.seal(DATA))
        services.up()
        assert not missing(kms, kms.seal(DATA))


def test_warm_up_learns_the_key(services: Services) -> None:
    """So that an outage may come at any time after it."""
    with services.client() as kms:
        with learning(kms):
            assert kms.warm_up().status == "healthy"
        services.down()
        assert not missing(kms, kms.seal(DATA))


# --- outages and refusals ------------------------------------------------------------------------


@pytest.mark.parametrize("error", OUTAGES, ids=by_code)
def test_who_cannot_be_reached_is_wrapped_to(services: Services, error: KMSError) -> None:
    """Whatever kind of outage it is."""
    with services.client() as kms:
        services.learn(kms)
        services.rsa.always("encrypt", raising(type(error), "away"))
        assert not missing(kms, kms.seal(DATA))


@pytest.mark.parametrize("error", REFUSALS, ids=by_code)
@pytest.mark.parametrize("later", [0.0, 0.5, 2.0])
def test_refusal_is_never_bypassed(services: Services, error: KMSError, later: float) -> None:
    """Neither when it is said, nor while it is remembered, nor when it is said again."""
    with services.client() as kms:
        services.learn(kms)
        services.rsa.always("encrypt", raising(type(error), "refused"))
        assert missing(kms, kms.seal(DATA))
        services.clock.advance(later)
        assert missing(kms, kms.seal(DATA))


def test_disabled_key_is_not_sealed_to(services: Services) -> None:
    """The service says so itself; enabled, it is sealed to once more."""
    with services.client() as kms:
        services.learn(kms)
        services.store.disable("default")
        sealed = kms.seal(DATA)
        assert missing(kms, sealed)
        assert services.watch.of("seal")[-1].missing == ("rsa",)
        services.store.enable("default")
        services.clock.advance(2.0)
        assert not missing(kms, kms.seal(DATA))


def test_disabled_key_is_noticed_within_the_age_of_a_public_key(services: Services) -> None:
    """``always`` does not ask in between; that is its price."""
    with services.client("always") as kms:
        kms.seal(DATA)
        services.store.disable("default")
        assert not missing(kms, kms.seal(DATA))
        services.clock.advance(PUBLIC_KEY_MAX_AGE)
        assert missing(kms, kms.seal(DATA))


def test_open_breaker_is_an_outage(services: Services) -> None:
    """The service is not asked, and nobody is missing."""
    with services.client(breaker=BreakerPolicy(failure_threshold=1)) as kms:
        services.learn(kms)
        services.down()
        kms.seal(DATA)
        assert kms.breakers["rsa"].state == "open"
        asked = services.rsa.count("encrypt")
        assert not missing(kms, kms.seal(DATA))
        assert services.rsa.count("encrypt") == asked


def test_service_that_does_not_answer_is_an_outage(services: Services) -> None:
    """Sealing waits its time for it and wraps then."""
    with services.client() as kms:
        services.learn(kms)

        def slow(_call: Call, proceed: Any) -> Any:
            raise DeadlineExceeded("no answer")

        services.rsa.always("encrypt", slow)
        assert services.offline_wraps(kms) == 1


# --- the age of a key ----------------------------------------------------------------------------


def test_key_is_asked_for_again_after_an_hour(services: Services) -> None:
    """Which is how a rotation becomes known."""
    with services.client() as kms:
        services.learn(kms)
        services.store.rotate("default")
        services.clock.advance(PUBLIC_KEY_MAX_AGE - 1)
        kms.seal(DATA)
        assert services.rsa.count("public_key") == 1
        services.clock.advance(1)
        services.learn(kms)
        assert services.rsa.count("public_key") == 2
        services.down()
        uris = [each.key_uri for each in kms.inspect(kms.seal(DATA)).recipients]
        assert "memory://rsa/default/2" in uris


def test_always_wraps_to_the_current_version_after_an_hour(services: Services) -> None:
    """In the call that finds the key too old."""
    with services.client("always") as kms:
        kms.seal(DATA)
        services.store.rotate("default")
        services.clock.advance(PUBLIC_KEY_MAX_AGE)
        sealed = kms.seal(DATA)
        assert "memory://rsa/default/2" in [each.key_uri for each in kms.inspect(sealed).recipients]
        assert services.rsa.count("public_key") == 2


@pytest.mark.parametrize("offline_wrap", ["fallback", "always"])
def test_old_key_serves_while_there_is_no_newer(services: Services, offline_wrap: str) -> None:
    """An outage of a week is no reason to stop; what was sealed meanwhile opens."""
    with services.client(offline_wrap) as kms:
        services.learn(kms)
        services.down()
        services.clock.advance(7 * 24 * 3600)
        sealed = kms.seal(DATA)
        assert not missing(kms, sealed)
        services.store.rotate("default")
        services.up()
        services.others["aes"].always("decrypt", raising(Unavailable, "down"))
        assert kms.open(sealed) == DATA


def test_asking_in_vain_is_repeated_not_piled_up(services: Services) -> None:
    """One request at a time is under way for the key, however many seal."""
    asked, release = threading.Event(), threading.Event()

    def hang(_call: Call, proceed: Any) -> Any:
        asked.set()
        assert release.wait(PATIENCE)
        raise Unavailable("down")

    services.rsa.always("public_key", hang)
    with services.client() as kms:
        for _ in range(10):
            kms.seal(DATA)
        assert asked.wait(PATIENCE)
        assert services.rsa.count("public_key") == 1
        services.rsa.heal("public_key")
        with learning(kms):
            release.set()
            while services.rsa.count("public_key") == 1:
                kms.seal(DATA)
        services.down()
        assert not missing(kms, kms.seal(DATA))


# --- keys and providers that do not fit ----------------------------------------------------------


class SilentProvider(MemoryProvider):
    """One that tells no public key."""

    public_key = None  # type: ignore[assignment]


@pytest.mark.parametrize("offline_wrap", ["fallback", "always"])
def test_provider_without_public_keys_is_refused_at_start(offline_wrap: str) -> None:
    """Named, with what to do."""
    instances: Mapping[str, Any] = {"a": {"offline_wrap": offline_wrap}}
    with pytest.raises(ConfigError) as raised:
        client_for({"a": service("a", kind=SilentProvider)}, instances=instances)
    assert str(raised.value) == (
        "settings: [instances.a] offline_wrap: provider memory tells no public key: remove it"
    )


@pytest.mark.parametrize("kind", ["AES-256-GCM", "RSA-OAEP"])
def test_never_is_for_every_provider(kind: KeyKind) -> None:
    """Also for one that tells no public key."""
    store = MemoryStore("a", keys=())
    store.create("default", kind)
    with client_for({"a": service("a", kind=SilentProvider, store=store)}) as kms:
        assert kms.open(kms.seal(DATA)) == DATA


def test_key_without_a_public_half_is_told_and_sealing_goes_on() -> None:
    """Through the service, as if there were no policy."""
    services = Services("aes", kind="AES-256-GCM")
    with services.client() as kms:
        with learning(kms):
            assert not missing(kms, kms.seal(DATA))
        assert services.watch.of("public_key", "invalid_request")
        services.down()
        assert missing(kms, kms.seal(DATA))


def signing_key(_call: Call, _proceed: Any) -> PublicKey:
    """What a service tells of a key that signs."""
    key = rsa.generate_private_key(65537, 2048).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(der, "memory://rsa/default/1", "1", ("RSA-PSS-SHA256",))


def test_key_that_is_not_for_wrapping_is_told_and_sealing_goes_on(services: Services) -> None:
    """Nothing is wrapped to it, in an outage either."""
    services.rsa.always("public_key", signing_key)
    with services.client() as kms:
        with learning(kms):
            assert not missing(kms, kms.seal(DATA))
        assert [event.instance for event in services.watch.with_outcome("invalid_request")] == [
            "rsa"
        ]
        services.down()
        assert missing(kms, kms.seal(DATA))


def test_always_needs_a_key_that_is_for_wrapping(services: Services) -> None:
    """It has no other way, so sealing says what is wrong."""
    services.rsa.always("public_key", signing_key)
    with (
        services.client("always") as kms,
        pytest.raises(InvalidRequest, match=r"rsa\..*RSA-OAEP-SHA256.*remove offline_wrap"),
    ):
        kms.seal(DATA)


def of_bits(bits: int) -> Fault:
    """Tell the public key of a pair of this size."""
    key = rsa.generate_private_key(65537, bits).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def fault(_call: Call, proceed: Any) -> Any:
        return evolve(proceed(), der=der)

    return fault


def test_key_too_small_for_a_wrap_does_not_stop_sealing(services: Services) -> None:
    """Its instance is left out in an outage, and the others hold the key."""
    services.rsa.always("public_key", of_bits(1024))
    with services.client() as kms:
        services.learn(kms)
        services.down()
        assert missing(kms, kms.seal(DATA))


# --- together with other policies ----------------------------------------------------------------


def test_share_is_wrapped_offline_as_a_key_is() -> None:
    """Two of three: with one away and another gone later, it opens."""
    services = Services("b", "c")
    with services.client(policy="2 of 3", min_recipients=3) as kms:
        services.learn(kms)
        services.down()
        sealed = kms.seal(DATA, CONTEXT)
        assert not missing(kms, sealed)
        services.up()
        services.others["b"].always("decrypt", raising(Unavailable, "down"))
        assert kms.open(sealed, CONTEXT) == DATA
        assert services.rsa.count("decrypt") == 1


def test_offline_wrap_counts_towards_the_domains(services: Services) -> None:
    """It is as good a recipient as any; without it sealing refuses."""
    with services.client(min_recipients=2) as kms:
        services.learn(kms)
        services.down()
        assert len(kms.inspect(kms.seal(DATA)).recipients) == 2
    with services.client("never", min_recipients=2) as kms, pytest.raises(AllInstancesFailed):
        kms.seal(DATA)


def test_required_instance_may_be_wrapped_to_offline(services: Services) -> None:
    """What is required is its wrap, not its answer."""
    instances = {"rsa": {"offline_wrap": "fallback", "required": True}}
    with client_for(
        services.all,
        instances=instances,
        modules={"watch": services.watch.module},
        options={"clock": services.clock},
        min_recipients=1,
    ) as kms:
        services.learn(kms)
        services.down()
        assert not missing(kms, kms.seal(DATA))


def test_direct_encryption_is_for_services_alone(services: Services) -> None:
    """Who asks one service to encrypt wants that one to do it."""
    with services.client() as kms:
        services.learn(kms)
        services.down()
        with pytest.raises(AllInstancesFailed):
            kms.encrypt(DATA, via="rsa")


def test_reader_may_refuse_what_public_keys_alone_could_have_made(services: Services) -> None:
    """A third party's number says nothing, so it is allowed; numbers that say it are not."""
    with services.client(allow_public_key_wraps=False) as kms:
        services.learn(kms)
        services.down()
        sealed = kms.seal(DATA)
        services.up()
        assert kms.open(sealed) == DATA


class TwoKeysProvider(MemoryProvider):
    """Wraps under numbers that are known: symmetric by the service, RSA offline."""

    wrap_algs: ClassVar[frozenset[int]] = frozenset({0x0101, 0x0102})

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        return evolve(super().encrypt(key_id, plaintext, context), wrap_alg=0x0101)

    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        return evolve(super().public_key(key_id), wrap_alg=0x0102)


def two_keys(services: Services) -> None:
    """Let ``rsa`` be one of those, and alone."""
    services.rsa = service("rsa", store=services.store, kind=TwoKeysProvider)
    services.all = {"rsa": services.rsa}


def test_require_pq_refuses_what_was_wrapped_offline(services: Services) -> None:
    """RSA is what a quantum computer undoes; the outage does not soften the policy."""
    two_keys(services)
    with services.client(require_pq=True) as kms:
        services.learn(kms)
        services.down()
        with pytest.raises(PolicyDenied, match="require_pq: rsa"):
            kms.seal(DATA)
        services.up()
        kms.seal(DATA)


def test_number_of_an_offline_wrap_says_what_it_is(services: Services) -> None:
    """So a reader that insists on the service's part does not open it."""
    two_keys(services)
    with services.client(allow_public_key_wraps=False) as kms:
        services.learn(kms)
        by_service = kms.seal(DATA)
        services.down()
        offline = kms.seal(DATA)
        services.up()
        assert kms.open(by_service) == DATA
        with pytest.raises(PolicyDenied, match="allow_public_key_wraps"):
            kms.open(offline)


def test_rewrap_adds_no_wrap_that_cannot_be_proved(services: Services) -> None:
    """Which takes the service; nothing is changed before it is back."""
    with services.client() as kms:
        services.learn(kms)
        services.rsa.always("encrypt", raising(AccessDenied, "no"))
        sealed = kms.seal(DATA)
        assert missing(kms, sealed)
        services.rsa.heal()
        services.clock.advance(2.0)
        services.down()
        with pytest.raises(AllInstancesFailed, match="nothing was changed"):
            kms.rewrap(sealed)
        services.up()
        assert not missing(kms, kms.rewrap(sealed))


# --- what is told, and what it costs -------------------------------------------------------------


def test_observers_can_tell_a_wrap_from_a_key_that_was_learnt(services: Services) -> None:
    """An audit counts the wraps that no service saw."""
    with services.client() as kms:
        services.learn(kms)
        assert services.watch.of("wrap_offline", "ok") == []


def test_warm_up_returns_with_the_key(services: Services) -> None:
    """An outage may come at any time after it, also if the service is a little slow."""
    returned = threading.Event()

    def slow(_call: Call, proceed: Any) -> Any:
        returned.wait(0.3)
        return proceed()

    services.rsa.always("public_key", slow)
    with services.client() as kms:
        with learning(kms):
            kms.warm_up()
            known = kms._router.relays["rsa"].offline._key
            returned.set()
        assert known is not None


def test_key_is_asked_for_again_where_no_thread_was_to_be_had(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host short of threads for a moment gets its fallback later."""
    with services.client() as kms:
        calls = kms._router.calls
        start = calls.start

        def refuse(relay: Relay, operation: str, *arguments: Any, **options: Any) -> Any:
            if operation == "public_key":
                raise ServiceError("no thread can be started")
            return start(relay, operation, *arguments, **options)

        monkeypatch.setattr(calls, "start", refuse)
        assert not missing(kms, kms.seal(DATA))
        assert kms._router.relays["rsa"].offline.begin_learning()


def test_open_breaker_keeps_the_key_from_being_asked_for(services: Services) -> None:
    """A service that is down costs nothing but probes, whatever for."""
    one_by_one = evolve(PATIENT, max_concurrency=1)
    with services.client(breaker=BreakerPolicy(failure_threshold=1), calls=one_by_one) as kms:
        services.learn(kms)
        services.clock.advance(PUBLIC_KEY_MAX_AGE)
        services.down()
        kms.seal(DATA)
        assert kms.breakers["rsa"].state == "open"
        asked = services.rsa.count("public_key")
        relay = kms._router.relays["rsa"]
        ended = threading.Event()
        for _ in range(3):
            kms.seal(DATA)
        relay.workers.submit(ended.set)
        assert ended.wait(PATIENCE)
        assert services.rsa.count("public_key") == asked
