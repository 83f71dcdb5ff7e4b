"""One instance: exactly one implementation answers, and only ``KMSError`` comes out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from kms_core import (
    AccessDenied,
    Ciphertext,
    Context,
    DataKey,
    Event,
    Health,
    InvalidCiphertext,
    InvalidRequest,
    KMSError,
    ProviderBug,
    Throttled,
    Unavailable,
    UnsupportedOperation,
    correlation_id,
)
from kms_core.relay import Relay
from kms_core.testing import Faulty, MemoryProvider, MemorySettings, MemoryStore, raising, returning
from tests.support import Clock, Events, module, relay_for, service

CONTEXT = Context({"tenant": "42"})
DEK = bytes(range(32))

#: How each hook of a relay is called.
CALLS: dict[str, Callable[[Relay], Any]] = {
    "encrypt": lambda relay: relay.encrypt(DEK, CONTEXT),
    "decrypt": lambda relay: relay.decrypt("default", Ciphertext(b"x", "memory://a/k"), CONTEXT),
    "generate_data_key": lambda relay: relay.generate_data_key(CONTEXT),
    "health": lambda relay: relay.health(),
    "describe_key": lambda relay: relay.describe_key(),
    "rotate_key": lambda relay: relay.rotate_key(),
    "match": lambda relay: relay.match("memory://a/default"),
}


@pytest.fixture
def provider() -> Faulty:
    """A memory provider whose every hook can be scripted."""
    return service("a")


@pytest.fixture
def events() -> list[Event]:
    """What the relay tells."""
    return []


@pytest.fixture
def relay(provider: Faulty, events: list[Event]) -> Iterator[Relay]:
    """A relay to that provider."""
    made = relay_for("east", provider, events=events)
    yield made
    made.close()


# --- what goes through ---------------------------------------------------------------------------


def test_a_wrap_names_the_instance_and_comes_back(relay: Relay) -> None:
    """``encrypt`` uses the configured key; ``decrypt`` the key that ``match`` names."""
    wrapped = relay.encrypt(DEK, CONTEXT)
    assert (wrapped.instance, wrapped.key_version) == ("east", "1")
    key_id = relay.match(wrapped.key_uri)
    assert key_id == "default"
    assert relay.decrypt(key_id, wrapped, CONTEXT) == DEK


def test_every_capability_of_the_provider_can_be_reached(relay: Relay) -> None:
    """What is checked is returned unchanged."""
    assert len(relay.generate_data_key(CONTEXT).plaintext) == 32
    assert relay.health().ok
    assert relay.describe_key().primary_version == "1"
    assert relay.rotate_key().primary_version == "2"
    assert relay.encrypt(DEK, CONTEXT).key_version == "2"


def test_a_foreign_uri_is_not_matched(relay: Relay) -> None:
    """``None`` is an answer, not an error."""
    assert relay.match("memory://elsewhere/default") is None


def test_only_uris_of_its_type_and_algorithms_it_writes_are_worth_asking_about(
    relay: Relay,
) -> None:
    """The reader's allow-list costs no call."""
    assert relay.may_hold("memory://x/y", 0x7FFF)
    assert not relay.may_hold("memory://x/y", 0x0101)
    assert not relay.may_hold("aws-kms://x/y", 0x7FFF)
    assert not relay.may_hold("memoryless://x/y", 0x7FFF)


def test_the_wrapped_bytes_become_immutable(provider: Faulty, relay: Relay) -> None:
    """A provider may return a bytearray; what is kept cannot change any more."""
    honest = relay.encrypt(DEK, CONTEXT)
    mutable: Any = bytearray(honest.data)
    provider.queue("encrypt", returning(Ciphertext(mutable, honest.key_uri)))
    data = relay.encrypt(DEK, CONTEXT).data
    assert (type(data), data) == (bytes, honest.data)


# --- domains -------------------------------------------------------------------------------------


class Plain(MemoryProvider):
    """A provider that tells no domain."""

    domain = None  # type: ignore[assignment]


def test_the_domain_is_the_configured_one_or_the_providers_or_its_type(provider: Faulty) -> None:
    """The most explicit statement wins."""
    uri = "memory://store/default/1"
    plain = Plain(MemorySettings())
    for made, configured, expected in (
        (provider, "eu", "eu"),
        (provider, None, "memory:store"),
        (plain, None, "memory"),
    ):
        with closing(relay_for("east", made, domain=configured)) as relay:
            assert relay.domain(uri) == expected


# --- what must not go through --------------------------------------------------------------------


@pytest.mark.parametrize("operation", list(CALLS))
@pytest.mark.parametrize("answer", [42, "text", [b"x"], Health])
def test_an_answer_of_the_wrong_type_is_a_bug(
    operation: str, answer: object, provider: Faulty, relay: Relay
) -> None:
    """Whatever a provider returns is looked at before anybody relies on it."""
    if operation == "match" and isinstance(answer, str):
        pytest.skip("a string is what match returns")
    provider.always(operation, returning(answer))
    with pytest.raises(ProviderBug, match=rf"^east\.{operation}: returned {type(answer).__name__}"):
        CALLS[operation](relay)


@pytest.mark.parametrize("operation", sorted(CALLS.keys() - {"match"}))
def test_no_answer_at_all_is_a_bug(operation: str, provider: Faulty, relay: Relay) -> None:
    """A forgotten ``return`` is no success."""
    provider.always(operation, returning(None))
    with pytest.raises(ProviderBug, match="returned NoneType"):
        CALLS[operation](relay)


@pytest.mark.parametrize("operation", list(CALLS))
def test_an_undocumented_error_is_a_bug_and_keeps_its_cause(
    operation: str, provider: Faulty, relay: Relay
) -> None:
    """The message names the class only: the text of a stranger's error may hold anything."""
    provider.always(operation, raising(KeyError, "the key itself"))
    with pytest.raises(ProviderBug, match=rf"^east\.{operation}: raised KeyError$") as caught:
        CALLS[operation](relay)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("operation", list(CALLS))
@pytest.mark.parametrize(
    "kind", [Unavailable, AccessDenied, InvalidCiphertext, InvalidRequest, Throttled]
)
def test_a_documented_error_leaves_as_it_is_with_its_origin(
    operation: str, kind: type[KMSError], provider: Faulty, relay: Relay
) -> None:
    """The provider chose the class; the core adds who, what and for which request."""
    provider.always(operation, raising(kind, "as the service says"))
    token = correlation_id.set("request-7")
    try:
        with pytest.raises(kind) as caught:
            CALLS[operation](relay)
    finally:
        correlation_id.reset(token)
    error = caught.value
    assert type(error) is kind
    assert (error.instance, error.operation) == ("east", operation)
    assert error.correlation_id == "request-7"
    assert str(error) == f"east.{operation}: as the service says"


@pytest.mark.parametrize(
    ("operation", "key"),
    [
        ("encrypt", "memory://a/default"),
        ("decrypt", "memory://a/k"),
        ("match", "memory://a/default"),
        ("health", "memory://a/default"),
    ],
)
def test_an_error_names_the_key_it_is_about(
    operation: str, key: str, provider: Faulty, relay: Relay
) -> None:
    """The configured one, or the one that a ciphertext names."""
    provider.always(operation, raising(Unavailable, "down"))
    with pytest.raises(Unavailable) as caught:
        CALLS[operation](relay)
    assert caught.value.key == key


@pytest.mark.parametrize("fault", [raising(KeyError, "x"), returning(None)])
def test_a_bug_names_the_key_it_is_about(fault: Any, provider: Faulty, relay: Relay) -> None:
    """Each error carries instance, operation, key and correlation id."""
    provider.always("encrypt", fault)
    with pytest.raises(ProviderBug) as caught:
        relay.encrypt(DEK, CONTEXT)
    assert caught.value.key == "memory://a/default"


# --- ciphertexts that no envelope could hold -----------------------------------------------------

OWN = "memory://a/default/1"


@pytest.mark.parametrize(
    ("ciphertext", "reason"),
    [
        (Ciphertext(b"", OWN), "0 bytes of ciphertext"),
        (Ciphertext(bytes(8193), OWN), "8193 bytes of ciphertext"),
        (Ciphertext(b"x", ""), "malformed key URI"),
        (Ciphertext(b"x", "memory://a/b c"), "malformed key URI"),
        (Ciphertext(b"x", "memory://" + "a" * 1020), "malformed key URI"),
        (Ciphertext(b"x", "memory://schlüssel"), "malformed key URI"),
        (Ciphertext(b"x", "aws-kms://arn"), "not its own"),
        (Ciphertext(b"x", OWN, wrap_alg=0x0101), "not its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrap_that_could_not_be_read_back_is_a_bug(
    ciphertext: Ciphertext, reason: str, provider: Faulty, relay: Relay
) -> None:
    """Found when it is written, not when the data is needed."""
    provider.always("encrypt", returning(ciphertext))
    data_key = DataKey(bytearray(32), ciphertext)
    provider.always("generate_data_key", returning(data_key))
    for call in (CALLS["encrypt"], CALLS["generate_data_key"]):
        with pytest.raises(ProviderBug, match=reason):
            call(relay)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_data_key_of_another_length_is_a_bug(size: int, provider: Faulty, relay: Relay) -> None:
    """Whoever asks for a 256-bit key gets one."""
    honest = relay.encrypt(DEK, CONTEXT)
    provider.always("generate_data_key", returning(DataKey(bytes(size), honest)))
    with pytest.raises(ProviderBug, match="another length than 32 bytes"):
        relay.generate_data_key(CONTEXT)


@pytest.mark.parametrize(
    "fields",
    [("text", OWN), (None, OWN), (7, OWN), (b"x", None), (b"x", b"memory://a"), (b"x", OWN, [])],
    ids=str,
)
def test_a_ciphertext_with_fields_of_the_wrong_type_is_a_bug(
    fields: tuple[Any, ...], provider: Faulty, relay: Relay
) -> None:
    """The right class around wrong values is a wrong answer all the same."""
    data, key_uri, *rest = fields
    ciphertext = Ciphertext(data, key_uri, wrap_alg=rest[0] if rest else 0x7FFF)
    provider.always("encrypt", returning(ciphertext))
    with pytest.raises(ProviderBug):
        relay.encrypt(DEK, CONTEXT)


@pytest.mark.parametrize("plaintext", [None, "x" * 32])
def test_a_data_key_with_fields_of_the_wrong_type_is_a_bug(
    plaintext: Any, provider: Faulty, relay: Relay
) -> None:
    """As for ciphertexts."""
    honest = relay.encrypt(DEK, CONTEXT)
    provider.always("generate_data_key", returning(DataKey(plaintext, honest)))
    with pytest.raises(ProviderBug):
        relay.generate_data_key(CONTEXT)


# --- capabilities --------------------------------------------------------------------------------


class Least(MemoryProvider):
    """A provider with the required hooks only."""

    generate_data_key = describe_key = rotate_key = None  # type: ignore[assignment]


def test_a_capability_the_provider_lacks_is_unsupported() -> None:
    """Said with the provider's type, and without asking it."""
    with closing(relay_for("east", Least(MemorySettings()))) as relay:
        for operation in ("generate_data_key", "describe_key", "rotate_key"):
            assert not relay.supports(operation)
            with pytest.raises(UnsupportedOperation, match=f"^east.{operation}: provider memory"):
                CALLS[operation](relay)


def test_a_wrapper_does_not_make_a_capability() -> None:
    """Somebody's wrapper around ``rotate_key`` is no implementation."""
    from kms_core import hookimpl

    @hookimpl(wrapper=True)
    def rotate_key(key_id: str) -> Iterator[None]:
        return (yield)

    modules = {"policy": module("policy", rotate_key=rotate_key)}
    with closing(relay_for("east", Least(MemorySettings()), modules=modules)) as relay:
        assert not relay.supports("rotate_key")
        with pytest.raises(UnsupportedOperation):
            relay.rotate_key()


def test_two_instances_of_one_class_do_not_answer_for_each_other() -> None:
    """Each has its own manager; neither sees the other's plaintext."""
    services = [service(name) for name in "ab"]
    relays = [relay_for(made.store.store_id, made) for made in services]
    for number, relay in enumerate(relays, start=1):
        with closing(relay):
            relay.encrypt(DEK, CONTEXT)
        assert [made.count("encrypt") for made in services] == [1, number - 1]


# --- preparing and closing -----------------------------------------------------------------------


class Prepared(MemoryProvider):
    """A provider with something to load and something to let go."""

    def __init__(self, *results: Exception | None, closing_fails: bool = False) -> None:
        super().__init__(MemorySettings(store=MemoryStore("a")))
        self._results = list(results)
        self._closing_fails = closing_fails
        self.prepared = self.closed = 0

    def prepare(self) -> None:
        self.prepared += 1
        error = self._results.pop(0) if self._results else None
        if error is not None:
            raise error

    def close(self) -> None:
        self.closed += 1
        if self._closing_fails:
            raise OSError("already gone")


def test_a_provider_is_prepared_once_however_many_ask() -> None:
    """Threads that come together wait for the first one's import."""
    provider = Prepared()
    with closing(relay_for("east", provider)) as relay:
        assert not relay.prepared
        threads = [threading.Thread(target=relay.prepare) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert relay.prepared
    assert provider.prepared == 1


def test_preparing_that_failed_is_tried_again() -> None:
    """An SDK that could not be loaded for want of memory may load later."""
    provider = Prepared(ImportError("no boto3"), AccessDenied("no profile"))
    with closing(relay_for("east", provider)) as relay:
        with pytest.raises(ProviderBug, match=r"^east\.prepare: raised ImportError$"):
            relay.prepare()
        with pytest.raises(AccessDenied, match=r"^east\.prepare: no profile$"):
            relay.prepare()
        relay.prepare()
        assert relay.prepared
    assert provider.prepared == 3


def test_closing_closes_the_provider_and_reports_what_that_raises() -> None:
    """Nobody can act on it, and the next instance must be closed as well."""
    events: list[Event] = []
    provider = Prepared(closing_fails=True)
    relay_for("east", provider, events=events).close()
    assert provider.closed == 1
    assert [(event.operation, event.outcome) for event in events] == [("close", "provider_bug")]


# --- events --------------------------------------------------------------------------------------


def test_every_call_is_told_with_its_duration_and_key() -> None:
    """One event per request to a service."""
    clock, events = Clock(), Events()
    provider = service("a")

    def slow(_call: object, proceed: Callable[[], Any]) -> Any:
        clock.advance(1.5)
        return proceed()

    provider.always("encrypt", slow)
    with closing(relay_for("east", provider, clock=clock, events=events.seen)) as relay:
        relay.encrypt(DEK, CONTEXT)
    assert events.seen == [
        Event("encrypt", "ok", instance="east", seconds=1.5, key_uri="memory://a/default")
    ]


def test_a_failed_call_is_told_with_the_code_of_its_error(
    provider: Faulty, relay: Relay, events: list[Event]
) -> None:
    """Codes are stable, messages are not."""
    provider.queue("decrypt", raising(Unavailable, "down"), raising(KeyError, "x"))
    for _ in range(2):
        with pytest.raises(KMSError):
            CALLS["decrypt"](relay)
    assert [event.outcome for event in events] == ["unavailable", "provider_bug"]


def test_matching_is_told_only_when_it_fails(
    provider: Faulty, relay: Relay, events: list[Event]
) -> None:
    """It is no request to a service unless an alias must be resolved."""
    relay.match("memory://a/default")
    assert events == []
    provider.always("match", raising(Unavailable, "down"))
    with pytest.raises(Unavailable):
        relay.match("memory://a/default")
    assert [event.operation for event in events] == ["match"]


def test_a_call_that_ends_the_thread_is_not_told_as_a_success(
    provider: Faulty, relay: Relay, events: list[Event]
) -> None:
    """An SDK that calls ``sys.exit`` did not encrypt anything."""
    provider.always("encrypt", raising(SystemExit, 1))
    with pytest.raises((SystemExit, ProviderBug)):
        relay.encrypt(DEK, CONTEXT)
    assert "ok" not in [event.outcome for event in events]


def test_an_answer_that_is_refused_is_not_told_as_a_success(
    provider: Faulty, relay: Relay, events: list[Event]
) -> None:
    """What could not be written into an envelope was no wrap."""
    provider.always("encrypt", returning(Ciphertext(b"x", "aws-kms://arn")))
    with pytest.raises(ProviderBug):
        relay.encrypt(DEK, CONTEXT)
    assert [event.outcome for event in events] == ["provider_bug"]
