"""The fault-injecting provider: faithful when silent, exact when scripted."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pluggy
import pytest

from kms_core import (
    Ciphertext,
    Context,
    DataKey,
    DeadlineExceeded,
    Health,
    InstanceInfo,
    InvalidCiphertext,
    KeyInfo,
    Provider,
    PublicKey,
    Signature,
    Throttled,
    Unavailable,
    hookimpl,
)
from kms_core.hookspecs import PROJECT, ProviderSpec
from kms_core.testing import (
    Call,
    Faulty,
    MemoryProvider,
    MemorySettings,
    MemoryStore,
    ProviderConformance,
    blocking,
    corrupting,
    echoing,
    faults,
    marked_hooks,
    raising,
    returning,
)

CONTEXT = Context({"tenant": "42"})
INFO = InstanceInfo("mem", "memory", "software")


class TestFaultyIsTransparent(ProviderConformance):
    """Without a script the wrapper is the provider it wraps."""

    rotates = has_sign = has_verify = has_public_key = True
    foreign_key_uri = "memory://elsewhere/default/1"

    @pytest.fixture
    def provider(self) -> Provider:
        return Faulty(MemoryProvider(MemorySettings()))

    @pytest.fixture
    def key_id(self) -> str:
        return "default"


class AllHooks:
    """A provider with every hook, one of them asking for the instance; it does no cryptography."""

    type_name = "all"
    settings = MemorySettings
    wrap_algs = frozenset({0x7FFF})
    protection = "hsm"
    key_uri = "all:key"

    def __init__(self) -> None:
        self.closed = False
        self.prepared = False

    def match(self, key_uri: str) -> str | None:
        return "key" if key_uri == self.key_uri else None

    def prepare(self) -> None:
        self.prepared = True

    def close(self) -> None:
        self.closed = True

    @hookimpl
    def encrypt(
        self, instance: InstanceInfo, key_id: str, plaintext: bytes, context: Context
    ) -> Ciphertext:
        return Ciphertext(plaintext[::-1], f"all:{key_id}", key_version=instance.name)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        return bytearray(ciphertext.data[::-1])

    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        return DataKey(bytes(32), Ciphertext(bytes(32), f"all:{key_id}"))

    @hookimpl
    def health(self, key_id: str) -> Health:
        return Health(ok=True)

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        return Signature(data[::-1], f"all:{key_id}", algorithm)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        return signature.data == data[::-1]

    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        return PublicKey(b"der", f"all:{key_id}")

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        return KeyInfo(f"all:{key_id}", "enabled", "hsm")

    @hookimpl
    def rotate_key(self, key_id: str) -> KeyInfo:
        return KeyInfo(f"all:{key_id}", "enabled", "hsm", primary_version="2")


@pytest.fixture
def faulty() -> Faulty:
    """A faulty in-memory provider."""
    return Faulty(MemoryProvider(MemorySettings(store=MemoryStore("unit"))))


def _manager(provider: Any) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ProviderSpec)
    manager.register(provider)
    manager.check_pending()
    return manager


def _arguments(hook: str) -> dict[str, Any]:
    given: dict[str, Any] = {
        "instance": INFO,
        "key_id": "key",
        "plaintext": b"ab",
        "ciphertext": Ciphertext(b"ba", "all:key"),
        "context": CONTEXT,
        "data": b"ab",
        "signature": Signature(b"ba", "all:key", "alg"),
        "algorithm": "alg",
    }
    return {
        name: given[name]
        for name in inspect.signature(getattr(ProviderSpec, hook)).parameters
        if name != "self"
    }


@pytest.mark.parametrize("hook", sorted(marked_hooks(AllHooks())))
def test_every_hook_arrives_through_pluggy(hook: str) -> None:
    """A plugin manager passes every argument, and the answer is the wrapped provider's."""
    honest, faulty = AllHooks(), Faulty(AllHooks(), INFO)
    arguments = _arguments(hook)
    through_pluggy = getattr(_manager(faulty).hook, hook)(**arguments)
    assert through_pluggy == getattr(_manager(honest).hook, hook)(**arguments)
    assert faulty.count(hook) == 1


class OnlyWraps(MemoryProvider):
    """A provider whose keys do not sign."""

    sign = verify = public_key = None  # type: ignore[assignment]


def test_wrapper_has_exactly_the_hooks_of_the_wrapped() -> None:
    """A capability that the provider lacks is not feigned."""
    faulty = Faulty(OnlyWraps(MemorySettings()))
    assert marked_hooks(faulty).keys() == marked_hooks(OnlyWraps(MemorySettings())).keys()
    assert _manager(faulty).hook.sign.get_hookimpls() == []
    assert marked_hooks(Faulty(AllHooks())).keys() == marked_hooks(AllHooks()).keys()


def test_class_facts_are_those_of_the_wrapped() -> None:
    """Two wrappers of different providers do not mix their facts up."""
    memory, everything = Faulty(MemoryProvider(MemorySettings())), Faulty(AllHooks())
    assert (type(memory).type_name, type(everything).type_name) == ("memory", "all")
    assert everything.protection == "hsm"
    assert isinstance(memory, Faulty)
    assert isinstance(everything, Faulty)


def test_life_cycle_is_passed_on() -> None:
    """What is no hook reaches the provider, and what it lacks is lacking."""
    provider = AllHooks()
    faulty = Faulty(provider)
    faulty.prepare()
    faulty.close()
    assert provider.prepared
    assert provider.closed
    assert not hasattr(faulty, "domain")
    assert not hasattr(faulty, "_secret")


def test_instance_is_made_up_where_none_is_given() -> None:
    """A wrapped hook that asks who the call is for gets an answer."""
    sealed = Faulty(AllHooks()).encrypt("key", b"ab", CONTEXT)
    assert sealed.key_version == "all"


def test_queue_is_played_in_order(faulty: Faulty) -> None:
    """Each call takes one fault from the queue; ``None`` and an empty queue behave."""
    faulty.queue("health", raising(Unavailable, "down"), None, returning("well"))
    with pytest.raises(Unavailable, match="down"):
        faulty.health("default")
    assert faulty.health("default").ok is True
    assert faulty.health("default") == "well"
    assert faulty.health("default").ok is True
    assert faulty.count("health") == 4


def test_queue_goes_before_script(faulty: Faulty) -> None:
    """A script says what happens when the queue is empty."""
    faulty.always("health", returning("scripted"))
    faulty.queue("health", returning("queued"))
    assert [faulty.health("default") for _ in range(3)] == ["queued", "scripted", "scripted"]


def test_script_decides_call_by_call(faulty: Faulty) -> None:
    """A flapping service is a function of the call's number."""
    down = raising(Unavailable, "down")
    faulty.script("health", lambda call: down if call.number % 2 else None)
    outcomes = []
    for _ in range(4):
        try:
            outcomes.append(faulty.health("default").ok)
        except Unavailable:
            outcomes.append("down")
    assert outcomes == ["down", True, "down", True]


def test_healing_forgets_faults_and_keeps_counts(faulty: Faulty) -> None:
    """One hook or all of them can be made well again."""
    for hook in ("health", "describe_key"):
        faulty.queue(hook, returning("queued"))
        faulty.always(hook, returning("scripted"))
    assert faulty.health("default") == "queued"
    faulty.heal("health")
    assert faulty.health("default").ok is True
    assert faulty.describe_key("default") == "queued"
    faulty.heal()
    assert faulty.describe_key("default").state == "enabled"
    assert (faulty.count("health"), faulty.count("describe_key")) == (2, 2)


def test_each_raised_error_is_new(faulty: Faulty) -> None:
    """The core writes into errors, so two calls may not share one."""
    faulty.always("health", raising(Throttled, "slow down", retry_after=2.0))
    errors = []
    for _ in range(2):
        with pytest.raises(Throttled) as caught:
            faulty.health("default")
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert [error.retry_after for error in errors] == [2.0, 2.0]


def test_unknown_hook_is_not_scripted() -> None:
    """A misspelt script would let every test pass."""
    faulty = Faulty(OnlyWraps(MemorySettings()))
    for hook in ("encypt", "sign"):
        with pytest.raises(ValueError, match=hook):
            faulty.queue(hook, returning(None))
        with pytest.raises(ValueError, match=hook):
            faulty.always(hook, returning(None))


def test_blocked_call_goes_on_when_released(faulty: Faulty) -> None:
    """A hung service can be waited for, and woken."""
    entered, release = threading.Event(), threading.Event()
    answers: list[Any] = []
    faulty.queue("health", blocking(release, entered=entered))
    caller = threading.Thread(target=lambda: answers.append(faulty.health("default")), daemon=True)
    caller.start()
    assert entered.wait(30)
    assert answers == []
    assert faulty.health("default").ok is True  # another call is not held up
    release.set()
    caller.join(30)
    assert [answer.ok for answer in answers] == [True]


def test_forgotten_block_ends(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that never releases fails instead of hanging."""
    monkeypatch.setattr(faults, "MAX_BLOCK_SECONDS", 0.0)
    faulty.queue("health", blocking(threading.Event()))
    with pytest.raises(DeadlineExceeded, match="nothing released the blocked health"):
        faulty.health("default")


def test_corrupted_wrap_does_not_open(faulty: Faulty) -> None:
    """One flipped bit in what the service returned."""
    faulty.queue("encrypt", corrupting(position=0, mask=0x80))
    sealed = faulty.encrypt("default", b"x", CONTEXT)
    with pytest.raises(InvalidCiphertext):
        faulty.decrypt("default", sealed, CONTEXT)


def test_corruption_changes_one_byte_of_any_answer() -> None:
    """Whatever has bytes can be corrupted, and keeps its type."""
    faulty = Faulty(AllHooks())
    for hook in ("decrypt", "generate_data_key", "sign", "public_key"):
        faulty.always(hook, corrupting())
    opened = faulty.decrypt("key", Ciphertext(b"ba", "all:key"), CONTEXT)
    assert (type(opened), opened) == (bytearray, b"ac")
    data_key = faulty.generate_data_key("key", CONTEXT)
    assert data_key.plaintext == bytes(32)
    assert data_key.ciphertext.data == bytes(31) + b"\x01"
    assert faulty.sign("key", b"ab", "alg").data == b"b`"
    assert faulty.public_key("key").der == b"des"


def test_wrong_key_is_echoed_in_any_answer() -> None:
    """Whatever names a key can name another one."""
    faulty = Faulty(AllHooks())
    for hook in ("encrypt", "generate_data_key", "sign", "public_key", "describe_key"):
        faulty.always(hook, echoing("all:other"))
    answers = (
        faulty.encrypt("key", b"ab", CONTEXT),
        faulty.generate_data_key("key", CONTEXT).ciphertext,
        faulty.sign("key", b"ab", "alg"),
        faulty.public_key("key"),
        faulty.describe_key("key"),
    )
    assert {answer.key_uri for answer in answers} == {"all:other"}


def test_fault_that_does_not_fit_says_so(faulty: Faulty) -> None:
    """A health report has neither bytes nor a key."""
    faulty.queue("health", corrupting(), echoing("memory://x"))
    with pytest.raises(TypeError, match="Health has no bytes"):
        faulty.health("default")
    with pytest.raises(TypeError, match="Health names no key"):
        faulty.health("default")


def test_match_can_be_scripted(faulty: Faulty) -> None:
    """Resolving a name may take a round trip, which may fail."""
    faulty.queue("match", raising(Unavailable, "down"))
    with pytest.raises(Unavailable):
        faulty.match("memory://unit/default/1")
    assert faulty.match("memory://unit/default/1") == "default"
    assert faulty.count("match") == 2


def test_calls_record_sizes_and_no_values(faulty: Faulty) -> None:
    """What was asked is known by size only: a record of calls can be printed."""
    secret = b"x-marks-the-secret"
    sealed = faulty.encrypt("default", secret, CONTEXT)
    faulty.decrypt("default", sealed, CONTEXT)
    assert faulty.calls == (
        Call("encrypt", 1, {"key_id": 7, "plaintext": 18, "context": len(CONTEXT.encoded)}),
        Call(
            "decrypt",
            1,
            {"key_id": 7, "ciphertext": len(sealed.data), "context": len(CONTEXT.encoded)},
        ),
    )
    assert "secret" not in repr(faulty.calls)


def test_counts_are_exact_under_threads(faulty: Faulty) -> None:
    """Each queued fault is played once, however many threads call."""
    faulty.queue("health", *(returning("queued") for _ in range(50)))
    start = threading.Barrier(8)
    answers: list[Any] = []

    def work() -> None:
        start.wait(30)
        answers.extend(faulty.health("default") for _ in range(25))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert faulty.count("health") == len(answers) == 200
    assert answers.count("queued") == 50
    assert sorted(call.number for call in faulty.calls) == list(range(1, 201))
