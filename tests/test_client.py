"""``Kms`` and ``AsyncKms``: what applications rely on."""

from __future__ import annotations

import asyncio
import inspect
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kms_core import (
    AllInstancesFailed,
    AsyncKms,
    BreakerPolicy,
    CachePolicy,
    Ciphertext,
    Context,
    Duration,
    EnvelopeInfo,
    FormatError,
    Health,
    HealthReport,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
    Kms,
    KMSError,
    NoMatchingRecipient,
    PolicyDenied,
    Unavailable,
    UnsupportedVersion,
    hookimpl,
    inspection,
)
from kms_core.envelope import wrap_context
from kms_core.testing import (
    Faulty,
    MemoryProvider,
    MemorySettings,
    MemoryStore,
    raising,
    returning,
)
from tests.support import (
    PATIENCE,
    PATIENT,
    OtherProvider,
    client_for,
    entry_points,
    hanging,
    module,
    service,
    settings_for,
)

DOWN = raising(Unavailable, "down")


@pytest.fixture
def services() -> dict[str, Faulty]:
    """Three independent services, two of one kind and one of another."""
    return {"a": service("a"), "b": service("b"), "c": service("c", kind=OtherProvider)}


@pytest.fixture
def kms(services: dict[str, Faulty]) -> Iterator[Kms]:
    """A client of these."""
    with client_for(services) as made:
        yield made


def close_all(services: Mapping[str, Faulty], *but: str) -> None:
    """Take every service down but these."""
    for name, made in services.items():
        if name not in but:
            for hook in ("encrypt", "decrypt", "health", "generate_data_key"):
                made.always(hook, DOWN)


# --- as in the documentation ---------------------------------------------------------------------


def test_the_calls_of_the_documentation(tmp_path: Path, services: dict[str, Faulty]) -> None:
    """Each as it is written there."""
    kms = client_for(services)
    blob = kms.seal(b"secret", context={"tenant": "42"})
    plain = kms.open(blob, context={"tenant": "42"})
    assert plain == b"secret"
    assert type(blob) is type(plain) is bytes

    ctx = kms.context({"tenant": "42"})
    assert kms.open(kms.seal(b"x", context=ctx), context=ctx) == b"x"

    info = kms.inspect(blob)
    assert isinstance(info, EnvelopeInfo)
    assert len(info.recipients) == 3
    assert info.missing == ()
    assert (info.suite, info.threshold, info.stored_context) == (1, 1, None)

    assert kms.rewrap(blob, add=(), remove=(), repair=True) == blob
    assert kms.is_sealed(blob)

    ct = kms.encrypt(b"small", context=ctx)
    assert isinstance(ct, Ciphertext)
    assert kms.decrypt(ct, context=ctx) == b"small"
    assert len(kms.generate_data_key(context=ctx).plaintext) == 32

    report = kms.health()
    assert isinstance(report, HealthReport)
    assert report.status == "healthy"
    assert report.instances["a"].state == "healthy"
    assert report.instances["a"].breaker == "closed"
    assert {info.name: info.state for info in kms.plugins} == {
        "memory": "loaded",
        "other": "loaded",
    }
    assert set(kms.breakers) == {"a", "b", "c"}
    kms.close()


# --- sealing and opening -------------------------------------------------------------------------


@given(st.binary(max_size=2000), st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_what_was_sealed_can_be_opened_with_the_same_context(
    data: bytes, context: dict[str, str]
) -> None:
    """Any bytes and any context that is one."""
    if any(key.startswith("kms_core:") for key in context):
        return
    with client_for({"a": service("a")}) as kms:
        assert kms.open(kms.seal(data, context), context) == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_object_is_data(kind: Callable[[bytes], Any], kms: Kms) -> None:
    """What comes out is always ``bytes``."""
    sealed = kms.seal(kind(b"data"))
    plain = kms.open(kind(sealed))
    assert (plain, type(plain)) == (b"data", bytes)
    assert kms.decrypt(kms.encrypt(kind(b"data"))) == b"data"
    assert kms.rewrap(kind(sealed)) == sealed
    assert kms.inspect(kind(sealed)).size == len(sealed)
    assert kms.is_sealed(kind(sealed))


@pytest.mark.parametrize("data", ["text", 7, None, ["x"]])
def test_anything_else_is_refused_with_a_hint(data: Any, kms: Kms) -> None:
    """Text must be encoded by whoever knows how."""
    for call in (kms.seal, kms.encrypt):
        with pytest.raises(InvalidRequest, match=r"expected bytes, got .*\.encode\(\)"):
            call(data)
    if not isinstance(data, str):
        for read in (kms.open, kms.rewrap):
            with pytest.raises(InvalidRequest, match="expected bytes"):
                read(data)


def test_the_callers_buffer_is_left_alone(kms: Kms) -> None:
    """Wiping it is the caller's decision."""
    buffer = bytearray(b"data")
    kms.seal(buffer)
    kms.encrypt(buffer)
    assert buffer == b"data"


def test_two_seals_of_the_same_data_have_nothing_in_common_but_their_form(kms: Kms) -> None:
    """A fresh data key each, as none is kept."""
    first, second = kms.seal(b"data"), kms.seal(b"data")
    assert kms.inspect(first).key_id != kms.inspect(second).key_id
    assert first != second


def test_another_context_does_not_open(kms: Kms) -> None:
    """Missing, changed or additional entries are all the same error."""
    sealed = kms.seal(b"x", {"tenant": "42", "row": "7"})
    for wrong in (
        None,
        {},
        {"tenant": "42"},
        {"tenant": "42", "row": "8"},
        {"tenant": "42", "row": "7", "more": ""},
        {"tenant": "42", "Row": "7"},
    ):
        with pytest.raises(IntegrityError):
            kms.open(sealed, wrong)
    assert kms.open(sealed, {"row": "7", "tenant": "42"}) == b"x"


def test_a_stored_context_travels_in_clear_and_is_authenticated(kms: Kms) -> None:
    """It need not be given again, and cannot be changed."""
    sealed = kms.seal(b"x", {"tenant": "42"}, stored_context={"file": "a.txt"})
    assert kms.inspect(sealed).stored_context == {"file": "a.txt"}
    assert kms.open(sealed, {"tenant": "42"}) == b"x"
    with pytest.raises(IntegrityError):
        kms.open(sealed.replace(b"a.txt", b"b.txt"), {"tenant": "42"})
    with pytest.raises(IntegrityError):
        kms.open(sealed)


@pytest.mark.parametrize(
    "context",
    [
        {1: "a"},
        {"a": 1},
        {"a": None},
        {"": "a"},
        ["tenant"],
        "tenant",
        42,
        {"kms_core:kid": "x"},
        Context({"kms_core:kid": "x"}),
        {f"k{number}": "" for number in range(65)},
        {"k": "v" * 9000},
        {"k": "\ud800"},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_context_is_refused_everywhere(context: Any, kms: Kms) -> None:
    """Reserved names most of all: with them a caller could ask a service for a data key."""
    ciphertext = kms.encrypt(b"x")
    sealed = kms.seal(b"x")
    for call in (
        lambda: kms.seal(b"x", context),
        lambda: kms.seal(b"x", stored_context=context),
        lambda: kms.open(sealed, context),
        lambda: kms.encrypt(b"x", context),
        lambda: kms.decrypt(ciphertext, context),
        lambda: kms.generate_data_key(context),
        lambda: kms.context(context),
    ):
        with pytest.raises(InvalidRequest):
            call()


def test_an_altered_envelope_does_not_open(kms: Kms) -> None:
    """Whatever byte it is, the error is one of the envelope layer's, or nobody was asked."""
    sealed = kms.seal(b"x" * 10)
    for position in (0, 1, 2, 5, 12, 44, 60, len(sealed) // 2, len(sealed) - 60, len(sealed) - 1):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises((FormatError, IntegrityError)):
            kms.open(altered)


@pytest.mark.parametrize("data", [b"", b"x", b"\xc1", b"\xc1\x11\x01", b"plain text " * 20])
def test_what_is_no_envelope_is_a_format_error(data: bytes, kms: Kms) -> None:
    """Raised before any key is used."""
    for call in (kms.open, kms.inspect, kms.rewrap):
        with pytest.raises(FormatError):
            call(data)


def test_a_capsule_alone_or_a_later_version_is_unsupported(kms: Kms) -> None:
    """Well-formed, and nothing this version opens."""
    sealed = kms.seal(b"x")
    later = bytes((sealed[0], 0x21, *sealed[2:]))
    with pytest.raises(UnsupportedVersion):
        kms.open(later)
    with pytest.raises(FormatError):
        kms.open(sealed[: kms.inspect(sealed).capsule_bytes])


def test_more_than_an_envelope_holds_asks_no_service(
    kms: Kms, services: dict[str, Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can never be sealed costs no call."""
    monkeypatch.setattr("kms_core.envelope.MAX_PLAINTEXT_BYTES", 100)
    with pytest.raises(InvalidRequest, match="at most 100 bytes"):
        kms.seal(bytes(101))
    assert services["a"].count("encrypt") == 0


# --- text ----------------------------------------------------------------------------------------


def test_armor_is_text_that_can_be_opened_like_bytes(kms: Kms) -> None:
    """base64url without padding: safe in URLs, JSON and environment variables."""
    text = kms.seal(b"x", {"tenant": "42"}, armor=True)
    assert isinstance(text, str)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert text.startswith("wREB")
    assert kms.open(text, {"tenant": "42"}) == b"x"
    assert kms.is_sealed(text)
    assert kms.inspect(text) == kms.inspect(inspection.unarmor(text))
    assert kms.rewrap(text) == inspection.unarmor(text)


@pytest.mark.parametrize("text", ["", "x", "wREB", "wREB====", "schlüssel", "wREB wREB", "a" * 99])
def test_text_that_is_no_envelope_is_a_format_error(text: str, kms: Kms) -> None:
    """Whichever rule it breaks."""
    with pytest.raises(FormatError):
        kms.open(text)


def test_padded_text_is_not_opened(kms: Kms) -> None:
    """One value has one encoding."""
    text = kms.seal(b"x", armor=True)
    with pytest.raises(FormatError):
        kms.open(text + "=" * (-len(text) % 4 or 4))


# --- outages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("survivor", ["a", "b", "c"])
def test_data_stays_readable_while_any_one_service_is_up(
    survivor: str, kms: Kms, services: dict[str, Faulty]
) -> None:
    """What was sealed when all was well."""
    sealed = kms.seal(b"x")
    close_all(services, survivor)
    assert kms.open(sealed) == b"x"


@pytest.mark.parametrize("survivor", ["a", "b", "c"])
def test_data_can_be_written_while_any_one_service_is_up(
    survivor: str, kms: Kms, services: dict[str, Faulty]
) -> None:
    """The envelope says who is missing, by key."""
    close_all(services, survivor)
    sealed = kms.seal(b"x")
    info = kms.inspect(sealed)
    assert [recipient.key_uri.split("/")[2] for recipient in info.recipients] == [survivor]
    assert info.degraded
    assert set(info.missing) == {
        made.key_uri for name, made in services.items() if name != survivor
    }
    assert kms.open(sealed) == b"x"


def test_with_all_services_down_nothing_is_written_or_read(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """And each service's answer is on record."""
    sealed = kms.seal(b"x")
    close_all(services)
    for call in (kms.seal, kms.open):
        with pytest.raises(AllInstancesFailed) as caught:
            call(b"x" if call == kms.seal else sealed)
        assert [attempt.instance for attempt in caught.value.attempts] == ["a", "b", "c"]
        assert all(isinstance(error, Unavailable) for error in caught.value.exceptions)


def test_a_required_service_must_hold_the_key(services: dict[str, Faulty]) -> None:
    """Degraded is allowed, but not without this one."""
    with client_for(services, instances={"b": {"required": True}}) as kms:
        close_all(services, "a", "c")
        with pytest.raises(AllInstancesFailed, match="required recipient b is missing"):
            kms.seal(b"x")


def test_a_client_with_none_of_the_keys_says_which_it_saw(kms: Kms) -> None:
    """Foreign or altered: one cannot tell."""
    sealed = kms.seal(b"x")
    with client_for({"z": service("z")}) as stranger, pytest.raises(NoMatchingRecipient) as caught:
        stranger.open(sealed)
    assert caught.value.key_uris == tuple(
        recipient.key_uri for recipient in kms.inspect(sealed).recipients
    )


def test_instances_that_are_no_recipients_may_open(services: dict[str, Faulty]) -> None:
    """Who may read is not who is written to."""
    with client_for(services, recipients=("a",)) as kms:
        only_a = kms.seal(b"x")
    with client_for(services, recipients=("b",)) as kms:
        assert kms.open(only_a) == b"x"
        assert len(kms.inspect(only_a).recipients) == 1


def test_two_instances_on_one_key_are_one_recipient() -> None:
    """Two endpoints of one service, say."""
    store = MemoryStore("shared")
    services = {"east": service("", store=store), "west": service("", store=store)}
    with client_for(services) as kms:
        sealed = kms.seal(b"x")
        assert len(kms.inspect(sealed).recipients) == 1
        close_all(services, "west")
        assert kms.open(sealed) == b"x"


def test_a_broken_plugin_does_not_stop_a_seal(kms: Kms, services: dict[str, Faulty]) -> None:
    """It answers nonsense; the others do their work."""
    services["a"].always("encrypt", returning("nonsense"))
    services["b"].always("encrypt", raising(ZeroDivisionError))
    assert kms.open(kms.seal(b"x")) == b"x"


# --- key_context ---------------------------------------------------------------------------------


class Wraps:
    """The contexts with which services were called."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Context]] = []
        seen = self.seen

        @hookimpl(wrapper=True)
        def encrypt(context: Context) -> Iterator[None]:
            seen.append(("encrypt", context))
            return (yield)

        @hookimpl(wrapper=True)
        def decrypt(context: Context) -> Iterator[None]:
            seen.append(("decrypt", context))
            return (yield)

        self.module = module("looks", encrypt=encrypt, decrypt=decrypt)


def test_services_see_the_chosen_entries_and_the_key_and_nothing_else() -> None:
    """W: the scope, the key id, the share and the suite."""
    wraps = Wraps()
    with client_for(
        {"a": service("a")}, modules={"looks": wraps.module}, key_context=("tenant",)
    ) as kms:
        sealed = kms.seal(b"x", {"tenant": "42", "row": "7"})
        kms.open(sealed, {"tenant": "42", "row": "7"})
        info = kms.inspect(sealed)
    expected = {
        "tenant": "42",
        "kms_core:kid": info.key_id,
        "kms_core:share": "0/1",
        "kms_core:suite": "1",
    }
    assert wraps.seen == [("encrypt", Context(expected)), ("decrypt", Context(expected))]
    assert wraps.seen[0][1] == wrap_context(info.scope, bytes.fromhex(info.key_id), info.suite)
    assert info.scope == {"tenant": "42"}


def test_without_key_context_services_see_no_entry_of_the_callers() -> None:
    """Row numbers and names stay here unless somebody chose otherwise."""
    wraps = Wraps()
    with client_for({"a": service("a")}, modules={"looks": wraps.module}) as kms:
        kms.seal(b"x", {"tenant": "42"})
    ((_, seen),) = wraps.seen
    assert set(seen) == {"kms_core:kid", "kms_core:share", "kms_core:suite"}


def test_direct_calls_show_services_the_whole_context() -> None:
    """There is nothing else that could bind it."""
    wraps = Wraps()
    with client_for({"a": service("a")}, modules={"looks": wraps.module}) as kms:
        kms.encrypt(b"x", {"tenant": "42"})
    assert wraps.seen == [("encrypt", Context({"tenant": "42"}))]


def test_what_key_context_asks_for_must_be_there(services: dict[str, Faulty]) -> None:
    """Before any service is asked."""
    with client_for(services, key_context=("tenant", "region")) as kms:
        with pytest.raises(InvalidRequest, match="the context lacks tenant, region"):
            kms.seal(b"x")
        with pytest.raises(InvalidRequest, match="the context lacks region"):
            kms.seal(b"x", {"tenant": "42"})
        with pytest.raises(InvalidRequest, match="region"):
            kms.seal(b"x", {"tenant": "42", "region": ""})
        sealed = kms.seal(b"x", {"tenant": "42"}, stored_context={"region": "eu"})
        assert kms.open(sealed, {"tenant": "42"}) == b"x"
    assert services["a"].count("encrypt") == 1


def test_a_context_that_contradicts_the_stored_one_is_not_sealed(
    services: dict[str, Faulty],
) -> None:
    """Such an envelope could never be opened again."""
    with client_for(services, key_context=("tenant",)) as kms:
        with pytest.raises(InvalidRequest, match="disagree"):
            kms.seal(b"x", {"tenant": "1"}, stored_context={"tenant": "2"})
        sealed = kms.seal(b"x", {"tenant": "1"}, stored_context={"tenant": "1"})
        assert kms.open(sealed, {"tenant": "1"}) == b"x"


def test_another_tenants_envelope_is_refused_before_any_service_is_asked(
    services: dict[str, Faulty],
) -> None:
    """No request of one tenant unwraps under another's scope."""
    with client_for(services, key_context=("tenant",)) as kms:
        sealed = kms.seal(b"x", {"tenant": "1"})
        for wrong in ({"tenant": "2"}, {}, {"Tenant": "1"}):
            with pytest.raises(IntegrityError):
                kms.open(sealed, wrong)
    assert {name: made.count("decrypt") for name, made in services.items()} == {
        "a": 0,
        "b": 0,
        "c": 0,
    }


def test_the_scope_of_an_envelope_is_its_own(services: dict[str, Faulty]) -> None:
    """A reader's ``key_context`` does not matter: the writer's is in the envelope."""
    with client_for(services, key_context=("tenant",)) as writer:
        sealed = writer.seal(b"x", {"tenant": "42"})
    with client_for(services) as reader:
        assert reader.open(sealed, {"tenant": "42"}) == b"x"


# --- direct use ----------------------------------------------------------------------------------


def test_a_direct_encryption_names_who_did_it_and_falls_back(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """The first in order of preference that can."""
    close_all(services, "b")
    ciphertext = kms.encrypt(b"x", {"k": "v"})
    assert ciphertext.instance == "b"
    assert ciphertext.key_uri == "memory://b/default/1"
    assert ciphertext.key_version == "1"
    assert kms.decrypt(ciphertext, {"k": "v"}) == b"x"


def test_a_direct_decryption_goes_to_the_holder_only(kms: Kms, services: dict[str, Faulty]) -> None:
    """No other service could do it."""
    ciphertext = kms.encrypt(b"x", via="b")
    services["b"].always("decrypt", DOWN)
    with pytest.raises(AllInstancesFailed) as caught:
        kms.decrypt(ciphertext)
    assert [attempt.instance for attempt in caught.value.attempts] == ["b"]
    assert {name: made.count("decrypt") for name, made in services.items()} == {
        "a": 0,
        "b": 1,
        "c": 0,
    }


def test_a_direct_decryption_may_go_to_a_replica() -> None:
    """Another instance that holds the same key is as good."""
    store = MemoryStore("shared")
    services = {"east": service("", store=store), "west": service("", store=store)}
    with client_for(services) as kms:
        ciphertext = kms.encrypt(b"x", via="east")
        close_all(services, "west")
        assert kms.decrypt(ciphertext) == b"x"


def test_a_direct_decryption_of_something_else_does_not_authenticate(kms: Kms) -> None:
    """Altered, or another context: one error, and without a cause to read."""
    ciphertext = kms.encrypt(b"x", {"k": "v"}, via="a")
    for altered, context in (
        (ciphertext, {"k": "w"}),
        (evolve(ciphertext, data=bytes(40)), {"k": "v"}),
        (evolve(ciphertext, data=b"x"), {"k": "v"}),
    ):
        with pytest.raises(InvalidCiphertext, match="altered or foreign, or the context diff") as c:
            kms.decrypt(altered, context)
        assert c.value.__suppress_context__
    with pytest.raises(NoMatchingRecipient):
        kms.decrypt(evolve(ciphertext, key_uri="memory://elsewhere/k/1"), {"k": "v"})


def test_a_direct_decryption_takes_a_ciphertext(kms: Kms) -> None:
    """Sealed bytes go to ``open``."""
    wrong: Any = b"x"
    with pytest.raises(InvalidRequest, match=r"sealed bytes are for open\(\)"):
        kms.decrypt(wrong)


@pytest.mark.parametrize("size", [0, 4097])
def test_a_direct_encryption_takes_what_services_take(size: int, kms: Kms) -> None:
    """More is what envelopes are for."""
    with pytest.raises(InvalidRequest, match=rf"1 to 4096 bytes, not {size}: seal\(\) takes more"):
        kms.encrypt(bytes(size))
    assert kms.decrypt(kms.encrypt(bytes(4096))) == bytes(4096)


def test_one_instance_may_be_named(kms: Kms) -> None:
    """Then nobody else will do; a wrong name is answered with the right ones."""
    assert kms.encrypt(b"x", via="c").instance == "c"
    assert kms.generate_data_key(via="b").ciphertext.instance == "b"
    for call in (lambda: kms.encrypt(b"x", via="d"), lambda: kms.generate_data_key(via="d")):
        with pytest.raises(InvalidRequest, match="no instance 'd'; known are a, b, c"):
            call()


def test_a_named_instance_that_is_down_is_not_replaced(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """Whoever names it means it."""
    close_all(services, "b")
    with pytest.raises(AllInstancesFailed) as caught:
        kms.encrypt(b"x", via="a")
    assert [attempt.instance for attempt in caught.value.attempts] == ["a"]


def test_direct_calls_never_weaken_protection_unless_allowed() -> None:
    """The choice is the configuration's."""
    services = {"hsm": service("hsm", protection="hsm"), "soft": service("soft")}
    close_all(services, "soft")
    with client_for(services) as kms, pytest.raises(AllInstancesFailed):
        kms.encrypt(b"x")
    with client_for(services, allow_weaker=True) as kms:
        assert kms.encrypt(b"x").instance == "soft"


def test_a_data_key_comes_back_by_decrypting(kms: Kms) -> None:
    """With the same context."""
    data_key = kms.generate_data_key({"k": "v"})
    assert kms.decrypt(data_key.ciphertext, {"k": "v"}) == data_key.plaintext
    with pytest.raises(InvalidCiphertext):
        kms.decrypt(data_key.ciphertext)


class NoDataKeys(MemoryProvider):
    """A service that makes no data keys."""

    generate_data_key = None  # type: ignore[assignment]


def test_a_data_key_is_drawn_here_where_the_service_makes_none() -> None:
    """Nobody needs to know the difference."""
    provider = Faulty(NoDataKeys(MemorySettings()))
    with client_for({"a": provider}) as kms:
        data_key = kms.generate_data_key({"k": "v"})
        assert len(data_key.plaintext) == 32
        assert data_key.ciphertext.instance == "a"
        assert kms.decrypt(data_key.ciphertext, {"k": "v"}) == data_key.plaintext
    assert provider.count("encrypt") == 1


# --- health --------------------------------------------------------------------------------------


def test_health_is_degraded_while_sealing_goes_on_without_somebody(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """The reason names who it is, and why."""
    services["b"].always("health", DOWN)
    services["c"].always("health", returning(Health(ok=False, reason="key is disabled")))
    report = kms.health()
    assert report.status == "degraded"
    assert report.reason == (
        "b, c cannot be used; sealing goes on without, and so does opening, except of what was "
        "sealed to b, c alone"
    )
    assert {name: health.state for name, health in report.instances.items()} == {
        "a": "healthy",
        "b": "unhealthy",
        "c": "unhealthy",
    }
    assert report.instances["b"].latency is None
    assert report.instances["b"].reason == "unavailable: b.health: down"
    assert report.instances["c"].reason == "key is disabled"
    assert report.instances["c"].latency is not None


def test_health_is_unhealthy_when_sealing_would_fail(kms: Kms, services: dict[str, Faulty]) -> None:
    """Too few domains are left."""
    close_all(services)
    report = kms.health()
    assert report.status == "unhealthy"
    assert report.reason == "too few of a, b, c can be used: sealing would fail"


def test_health_counts_domains_and_requirements(services: dict[str, Faulty]) -> None:
    """As sealing does."""
    services["b"].always("health", DOWN)
    with client_for(services, min_recipients=3) as kms:
        assert kms.health().status == "unhealthy"
    with client_for(services, min_recipients=2) as kms:
        assert kms.health().status == "degraded"
    with client_for(services, instances={"b": {"required": True}}) as kms:
        assert kms.health().status == "unhealthy"


def test_an_unwell_instance_that_is_no_recipient_degrades_only(
    services: dict[str, Faulty],
) -> None:
    """Some envelopes may not be readable; new ones can be written."""
    services["b"].always("health", DOWN)
    with client_for(services, recipients=("a",)) as kms:
        assert kms.health().status == "degraded"
    services["a"].always("health", DOWN)
    services["b"].heal()
    with client_for(services, recipients=("a",)) as kms:
        assert kms.health().status == "unhealthy"


def test_health_does_not_wait_for_the_silent(services: dict[str, Faulty]) -> None:
    """A probe of an orchestrator has no patience."""
    calls = evolve(PATIENT, health_timeout=Duration(0.5))
    with hanging() as hang, client_for(services, calls=calls) as kms:
        services["a"].always("health", hang.fault)
        report = kms.health()
    assert report.status == "degraded"
    assert report.instances["a"].reason.startswith("deadline_exceeded: ")
    assert report.instances["b"].state == "healthy"


def test_breakers_can_be_looked_at(services: dict[str, Faulty]) -> None:
    """Health shows their state, ``breakers`` the numbers behind it."""
    close_all(services, "b", "c")
    with client_for(services, breaker=BreakerPolicy(failure_threshold=1)) as kms:
        kms.seal(b"x")
        assert kms.breakers["a"].state == "open"
        assert kms.breakers["a"].opened_count == 1
        assert kms.breakers["a"].retry_after > 0
        assert kms.breakers["b"].state == "closed"
        services["a"].heal()
        assert kms.health().instances["a"].breaker == "open"


def test_health_is_not_healthy_while_a_breaker_refuses(services: dict[str, Faulty]) -> None:
    """The service is back, and calls are still kept from it: sealing leaves it out."""
    close_all(services, "b", "c")
    with client_for(services, breaker=BreakerPolicy(failure_threshold=1)) as kms:
        kms.seal(b"x")
        services["a"].heal()
        assert kms.inspect(kms.seal(b"x")).degraded
        assert kms.health().status != "healthy"


# --- lifecycle -----------------------------------------------------------------------------------


def test_a_closed_client_does_nothing_more(services: dict[str, Faulty]) -> None:
    """And says so, whatever it is asked."""
    kms = client_for(services)
    sealed, ciphertext = kms.seal(b"x"), kms.encrypt(b"x")
    kms.close()
    kms.close()
    for call in (
        lambda: kms.seal(b"x"),
        lambda: kms.open(sealed),
        lambda: kms.rewrap(sealed),
        lambda: kms.encrypt(b"x"),
        lambda: kms.decrypt(ciphertext),
        kms.generate_data_key,
        kms.health,
    ):
        with pytest.raises(InvalidRequest, match="this Kms is closed"):
            call()
    assert kms.inspect(sealed).recipients
    assert kms.is_sealed(sealed)


def test_a_client_closes_every_provider_at_the_end_of_its_block(
    services: dict[str, Faulty],
) -> None:
    """Also after an error, also if one of them fails to close."""
    closed: list[str] = []

    def closing(name: str) -> Callable[[], None]:
        def close() -> None:
            closed.append(name)
            if name == "a":
                raise OSError("gone already")

        return close

    for name, made in services.items():
        vars(made)["close"] = closing(name)

    def work() -> None:
        with client_for(services) as kms:
            kms.seal(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert closed == ["a", "b", "c"]


def test_no_thread_outlives_a_client(services: dict[str, Faulty]) -> None:
    """Idle workers leave at once."""
    before = set(threading.enumerate())
    with client_for(services) as kms:
        kms.open(kms.seal(b"x"))
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before


def test_making_a_client_asks_no_service_and_starts_no_thread(services: dict[str, Faulty]) -> None:
    """It may be made while everything is down."""
    before = threading.active_count()
    with client_for(services):
        assert threading.active_count() == before
    assert all(made.calls == () for made in services.values())


@pytest.mark.parametrize("use", ["seal", "open"])
def test_what_is_kept_is_dropped_in_time_though_nobody_comes_by(
    services: dict[str, Faulty], use: str
) -> None:
    """Also by a process that only opens; then no thread is left that waits for more."""
    brief = CachePolicy(max_age=Duration(0.1))
    with client_for(services) as other, client_for(services, cache=brief) as kms:
        sealed = other.seal(b"x")
        for _ in range(2):  # a second key is dropped as the first was
            assert kms.seal(b"x") if use == "seal" else kms.open(sealed)
            info = kms.cache_info()
            assert (info.sealing.misses, info.opening.misses) != (0, 0)
            assert eventually(lambda: kms.cache_info().sealing.keys == 0)
            assert eventually(lambda: kms.cache_info().opening.keys == 0)
            assert eventually(lambda: not sweepers())


def test_a_client_that_keeps_nothing_starts_no_thread_for_that(kms: Kms) -> None:
    """There is nothing to be dropped."""
    assert kms.open(kms.seal(b"x")) == b"x"
    assert kms.cache_info().sealing.keys == kms.cache_info().opening.keys == 0
    assert not sweepers()


def sweepers() -> list[threading.Thread]:
    """The threads that drop keys in time, of whatever client."""
    return [thread for thread in threading.enumerate() if thread.name == "kms-cache"]


def eventually(holds: Callable[[], object]) -> bool:
    """Whether it holds within reasonable time."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


def test_two_clients_share_nothing(services: dict[str, Faulty]) -> None:
    """Breakers, threads and plugins are each client's own; the keys are the services'."""
    close_all(services, "b", "c")
    breaker = BreakerPolicy(failure_threshold=1)
    with client_for(services, breaker=breaker) as one, client_for(services) as other:
        sealed = one.seal(b"x")
        assert one.breakers["a"].state == "open"
        assert other.breakers["a"].state == "closed"
        one.close()
        assert other.open(sealed) == b"x"


def test_many_threads_may_use_one_client() -> None:
    """Sixteen at once, each sealing and opening fifty times, every time with a data key of its own.

    That nothing is kept also means that nobody is given what another is waiting for.
    """
    services = {"a": service("a"), "b": service("b")}
    with client_for(services) as kms, ThreadPoolExecutor(16) as pool:

        def work(number: int) -> int:
            context = kms.context({"thread": str(number)})
            for turn in range(50):
                data = f"{number}:{turn}".encode()
                assert kms.open(kms.seal(data, context), context) == data
            return number

        assert sorted(pool.map(work, range(16))) == list(range(16))
        assert {state.failures_in_window for state in kms.breakers.values()} == {0}
    assert services["a"].count("encrypt") == 16 * 50


# --- asyncio -------------------------------------------------------------------------------------


def arguments(cls: type) -> dict[str, dict[str, Any]]:
    """The arguments of every public method, with their defaults."""
    return {
        name: {
            parameter.name: parameter.default
            for parameter in inspect.signature(getattr(cls, name)).parameters.values()
        }
        for name, member in inspect.getmembers_static(cls)
        if not name.startswith("_") and not isinstance(member, property)
    }


def test_async_has_the_same_names() -> None:
    """Whoever knows the one knows the other."""
    names = [{name for name in dir(cls) if not name.startswith("_")} for cls in (Kms, AsyncKms)]
    assert names[0] == names[1]


def test_async_has_the_same_arguments() -> None:
    """With the same defaults."""
    assert arguments(Kms) == arguments(AsyncKms)


def test_async_does_what_the_other_does(services: dict[str, Faulty]) -> None:
    """The same calls, awaited; what needs no service is not."""

    async def work() -> None:
        settings = settings_for(services)
        async with AsyncKms(settings, plugins=entry_points()) as kms:
            ctx = kms.context({"tenant": "42"})
            sealed = await kms.seal(b"x", context=ctx, stored_context={"file": "a"})
            assert await kms.open(sealed, context=ctx) == b"x"
            assert await kms.rewrap(sealed) == sealed
            assert kms.is_sealed(sealed)
            assert kms.inspect(sealed).stored_context == {"file": "a"}
            ciphertext = await kms.encrypt(b"small", ctx, via="b")
            assert ciphertext.instance == "b"
            assert await kms.decrypt(ciphertext, ctx) == b"small"
            assert len((await kms.generate_data_key(ctx)).plaintext) == 32
            assert (await kms.health()).status == "healthy"
            assert {info.state for info in kms.plugins} == {"loaded"}
            assert set(kms.breakers) == {"a", "b", "c"}
        with pytest.raises(InvalidRequest, match="closed"):
            await kms.seal(b"x")

    asyncio.run(work())


def test_async_seals_and_opens_streams_and_files(
    tmp_path: Path, services: dict[str, Faulty]
) -> None:
    """What takes long runs elsewhere; readers and writers themselves are ordinary ones."""
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(b"data" * 1000)

    async def work() -> None:
        async with AsyncKms(settings_for(services), plugins=entry_points()) as kms:
            await kms.seal_file(plain, sealed, {"k": "v"})
            assert not await kms.rewrap_file(sealed)
            assert await kms.rewrap_file(sealed, remove="b")
            await kms.open_file(sealed, opened, {"k": "v"})
            buffer = io.BytesIO()
            with await kms.sealing(buffer, {"k": "v"}) as writer:
                writer.write(b"data")
            buffer.seek(0)
            with await kms.opening(buffer, {"k": "v"}) as reader:
                assert reader.read() == b"data"

    asyncio.run(work())
    assert opened.read_bytes() == plain.read_bytes()


def test_async_may_take_over_a_client(services: dict[str, Faulty]) -> None:
    """And closes it in the end."""
    kms = client_for(services)

    async def work() -> None:
        async with AsyncKms(kms) as awaitable:
            await awaitable.seal(b"x")

    asyncio.run(work())
    with pytest.raises(InvalidRequest, match="closed"):
        kms.seal(b"x")


def test_async_is_made_from_files_and_the_environment(tmp_path: Path) -> None:
    """Errors are the same, too."""
    path = tmp_path / "kms.toml"
    path.write_text('[instances.a]\nprovider = "nowhere"\n')
    with pytest.raises(KMSError, match="needs plugin 'nowhere'"):
        AsyncKms.from_config(path)
    with pytest.raises(KMSError, match="no configuration"):
        AsyncKms.from_env()


def test_async_keeps_the_loop_free_while_a_service_hangs(services: dict[str, Faulty]) -> None:
    """Other tasks run meanwhile."""
    with hanging() as hang:
        services["a"].always("decrypt", hang.fault)

        async def work() -> bytes:
            async with AsyncKms(settings_for({"a": services["a"]}), plugins=entry_points()) as kms:
                opening = asyncio.create_task(kms.open(await kms.seal(b"x")))
                await asyncio.to_thread(hang.wait_until_entered)
                assert not opening.done()
                hang.release.set()
                return await opening

        assert asyncio.run(work()) == b"x"


def test_async_refusals_are_the_same(services: dict[str, Faulty]) -> None:
    """An exception group and a policy's refusal arrive as they are."""

    @hookimpl(wrapper=True)
    def decrypt(key_id: str) -> Iterator[None]:
        raise PolicyDenied("not on a Sunday")
        yield  # pragma: no cover

    kms = client_for(services, modules={"policy": module("policy", decrypt=decrypt)})

    async def work() -> None:
        async with AsyncKms(kms) as awaitable:
            with pytest.raises(PolicyDenied, match="not on a Sunday"):
                await awaitable.open(await awaitable.seal(b"x"))
            close_all(services)
            with pytest.raises(AllInstancesFailed):
                await awaitable.seal(b"x")

    asyncio.run(work())
