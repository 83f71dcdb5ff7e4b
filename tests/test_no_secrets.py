"""Nothing that is shown, logged, told or raised holds plaintext, key material or a passphrase."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from attrs import field, frozen

from kms_core import (
    AllInstancesFailed,
    Ciphertext,
    ConfigError,
    Context,
    DataKey,
    Event,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
    Kms,
    KMSError,
    Secret,
    Signature,
    Unavailable,
    hookimpl,
)
from kms_core.aead import Keys
from kms_core.config import Raw, load, structure
from kms_core.testing import Call, Fault, Faulty, raising, returning
from tests.support import client_for, found, module, providers_module, service

PLAINTEXT = b"canary-plaintext-5f1c"
PASSPHRASE = "canary-passphrase-9a40"
PERSON = "canary-person-77e2"
CONTEXT = {"name": PERSON}


@pytest.fixture
def services() -> dict[str, Faulty]:
    """Two services."""
    return {"a": service("a"), "b": service("b")}


class Told:
    """Everything that left the library other than as a return value, and the keys it handled."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.events: list[Event] = []
        self.keys: set[bytes] = set()
        self.errors: list[BaseException] = []
        self._caplog = caplog

        @hookimpl(wrapper=True)
        def encrypt(plaintext: bytes | bytearray) -> Any:
            self.keys.add(bytes(plaintext))
            return (yield)

        self.spy = module("spy", encrypt=encrypt)

    def attempt(self, call: Callable[[], object]) -> None:
        """Do it, and keep what it raises."""
        try:
            call()
        except KMSError as exc:
            self.errors.append(exc)

    def texts(self) -> Iterator[str]:
        """Every text a user might print or a program might log."""
        for event in self.events:
            yield repr(event)
        for record in self._caplog.records:
            yield f"{record.getMessage()} {vars(record)!r}"
        for error in self.errors:
            yield f"{error} {error!r} {vars(error)!r}"
            yield "".join(traceback.format_exception(error))

    def check(self) -> None:
        """Nothing secret is in any of them."""
        assert self.events
        assert self._caplog.records
        for text in self.texts():
            assert not leaks(text, PLAINTEXT, PASSPHRASE.encode(), PERSON.encode(), *self.keys)


def leaks(text: str, *secrets: bytes) -> bool:
    """Whether one of these is in there, in any form in which bytes are usually written."""
    return any(
        shown in text
        for secret in secrets
        for shown in (secret.decode("latin-1"), repr(secret)[2:-1], secret.hex(), str(list(secret)))
    )


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    """A collector, with the log at its most talkative."""
    caplog.set_level(logging.DEBUG)
    return Told(caplog)


def test_the_search_finds_what_it_is_meant_to_find() -> None:
    """Else the other tests here would prove nothing."""
    for text in (repr(PLAINTEXT), PLAINTEXT.hex(), str(list(PLAINTEXT)), PLAINTEXT.decode()):
        assert leaks(text, PLAINTEXT)
    assert not leaks("harmless", PLAINTEXT)


# --- what happens at run time --------------------------------------------------------------------


def careless(_: Call, proceed: Callable[[], Any]) -> Any:
    """What a plugin must not do: an error that tells everything."""
    raise RuntimeError(f"failed on {PLAINTEXT!r} with {PASSPHRASE}")


@pytest.mark.parametrize(
    "fault",
    [
        None,
        raising(Unavailable, "down"),
        raising(InvalidCiphertext, "authentication failed"),
        returning(PLAINTEXT),
        returning(PLAINTEXT.decode()),
        returning({PASSPHRASE: PLAINTEXT}),
    ],
    ids=["well", "down", "bad", "other bytes", "text", "table"],
)
def test_no_call_tells_a_secret_however_it_ends(
    services: dict[str, Faulty], told: Told, fault: Fault | None
) -> None:
    """Events, log records, errors and their tracebacks, with one or both services failing."""
    with client_for(
        services, modules={"spy": told.spy}, options={"observe": told.events.append}
    ) as kms:
        blob = kms.seal(PLAINTEXT, CONTEXT)
        wrapped = kms.encrypt(PLAINTEXT, CONTEXT)
        key = kms.generate_data_key(CONTEXT)
        told.keys.add(bytes(key.plaintext))
        for name in ("a", "b"):
            if fault is not None:
                for hook in ("encrypt", "decrypt", "generate_data_key", "health"):
                    services[name].always(hook, fault)
            told.attempt(lambda: kms.seal(PLAINTEXT, CONTEXT))
            told.attempt(lambda: kms.open(blob, CONTEXT))
            told.attempt(lambda: kms.open(blob, {"name": PERSON + "x"}))
            told.attempt(lambda: kms.rewrap(blob, add="b"))
            told.attempt(lambda: kms.encrypt(PLAINTEXT, CONTEXT))
            told.attempt(lambda: kms.decrypt(wrapped, CONTEXT))
            told.attempt(lambda: kms.generate_data_key(CONTEXT))
            told.attempt(kms.health)
    assert told.errors
    told.check()


@pytest.mark.parametrize(
    "call",
    [
        lambda kms: kms.seal(PLAINTEXT.decode()),
        lambda kms: kms.seal(PLAINTEXT, PERSON),
        lambda kms: kms.seal(PLAINTEXT, {PERSON: 1}),
        lambda kms: kms.seal(PLAINTEXT, {"kms_core:x": PERSON}),
        lambda kms: kms.seal(PLAINTEXT, {"name": PERSON}, stored_context={"name": "x"}),
        lambda kms: kms.seal(PLAINTEXT, {"name": PERSON + "\udc80"}),
        lambda kms: kms.seal(PLAINTEXT, {"name": PERSON * 1000}),
        lambda kms: kms.encrypt(PLAINTEXT * 1000),
        lambda kms: kms.open(PLAINTEXT),
        lambda kms: kms.open(PLAINTEXT.decode()),
        lambda kms: kms.decrypt(PLAINTEXT),
    ],
)
def test_a_refused_argument_is_not_repeated(
    services: dict[str, Faulty], call: Callable[[Kms], object]
) -> None:
    """The message says what kind of thing it was."""
    with client_for(services) as kms, pytest.raises(KMSError) as caught:
        call(kms)
    text = f"{caught.value} {caught.value!r}" + "".join(traceback.format_exception(caught.value))
    source = Path(__file__).read_text()  # lines of this file that a traceback quotes are no leak
    shown = "\n".join(line for line in text.splitlines() if line.strip() not in source)
    assert not leaks(shown, PLAINTEXT, PERSON.encode())


def test_a_careless_error_is_named_by_its_kind_only(
    services: dict[str, Faulty], told: Told
) -> None:
    """Its text stays with the cause: message, event and log do not repeat it."""
    services["a"].always("encrypt", careless)
    services["b"].always("encrypt", careless)
    with (
        client_for(services, options={"observe": told.events.append}) as kms,
        pytest.raises(AllInstancesFailed) as caught,
    ):
        kms.encrypt(PLAINTEXT)
    assert "raised RuntimeError" in str(caught.value)
    told.check()
    for text in (str(caught.value), repr(caught.value), repr(caught.value.attempts)):
        assert not leaks(text, PLAINTEXT, PASSPHRASE.encode())


def test_an_observer_that_crashes_is_not_quoted(services: dict[str, Faulty], told: Told) -> None:
    """The log names it and the kind of its error."""

    def observe(event: Event) -> None:
        told.events.append(event)
        raise RuntimeError(PASSPHRASE)

    with client_for(services, options={"observe": observe}) as kms:
        kms.seal(PLAINTEXT, CONTEXT)
    told.check()


# --- what is shown -------------------------------------------------------------------------------

KEY = bytes(range(100, 132))


@pytest.mark.parametrize(
    ("shown", "secret"),
    [
        (Secret(PASSPHRASE), PASSPHRASE.encode()),
        (Context(CONTEXT), PERSON.encode()),
        (DataKey(KEY, Ciphertext(b"x", "memory://a/k")), KEY),
        (DataKey(bytearray(KEY), Ciphertext(b"x", "memory://a/k")), KEY),
        (Ciphertext(PLAINTEXT, "memory://a/k"), PLAINTEXT),
        (Signature(PLAINTEXT, "memory://a/k", "ES256"), PLAINTEXT),
        (Keys(KEY, Context()), KEY),
        (Raw({}, "kms.toml", Path(), {"PIN": PASSPHRASE}), PASSPHRASE.encode()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_public_object_shows_no_secret(shown: object, secret: bytes) -> None:
    """Neither by itself nor inside of something else."""
    for text in (repr(shown), str(shown), f"{shown}", repr([shown]), f"{shown!a}"):
        assert not leaks(text, secret)


def test_clients_and_settings_show_no_options(services: dict[str, Faulty]) -> None:
    """A provider's table may hold anything."""
    from kms_core import InstanceConfig, Settings

    made = Settings({"x": InstanceConfig("memory", {"pin": PASSPHRASE})})
    assert PASSPHRASE not in f"{made!r} {made}"
    with client_for(services) as kms:
        assert PLAINTEXT.decode() not in repr(kms)


@pytest.mark.parametrize(
    "duplicate",
    [pickle.dumps, copy.copy, copy.deepcopy, lambda secret: copy.deepcopy({"pin": secret})],
    ids=["pickle", "copy", "deepcopy", "inside"],
)
def test_a_secret_is_neither_pickled_nor_copied(duplicate: Callable[[Secret], object]) -> None:
    """It would end up where nobody looks after it."""
    with pytest.raises(TypeError, match="not pickled") as caught:
        duplicate(Secret(PASSPHRASE))
    assert PASSPHRASE not in str(caught.value)


def test_an_error_can_be_pickled_and_stays_silent(services: dict[str, Faulty]) -> None:
    """Task queues do that."""
    for each in services.values():
        each.always("encrypt", raising(Unavailable, "down"))
    with client_for(services) as kms, pytest.raises(AllInstancesFailed) as caught:
        kms.seal(PLAINTEXT, CONTEXT)
    data = pickle.dumps(caught.value)
    assert PLAINTEXT not in data
    assert PERSON.encode() not in data
    again = pickle.loads(data)  # noqa: S301  our own
    assert str(again) == str(caught.value)


# --- configuration -------------------------------------------------------------------------------


@frozen
class Vault:
    """Settings with a secret, refused after it was read."""

    key: str = "default"
    pin: Secret | None = None
    retries: int = field(default=1, validator=attrs.validators.ge(1))


class VaultProvider:
    """A provider that fails while it is set up, and says too much."""

    type_name: ClassVar[str] = "vault"
    settings: ClassVar[type[Any]] = Vault
    wrap_algs: ClassVar[frozenset[int]] = frozenset({0x7FFF})
    protection = "software"
    key_uri = "vault://x"

    def __init__(self, settings: Vault) -> None:
        assert settings.pin is not None
        raise RuntimeError(f"cannot log in with {settings.pin.reveal()}")

    def match(self, key_uri: str) -> str | None:
        return None

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Any:
        """Never reached."""

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> Any:
        """Never reached."""

    @hookimpl
    def health(self, key_id: str) -> Any:
        """Never reached."""


def test_a_rejected_table_does_not_show_its_secrets(tmp_path: Path) -> None:
    """Whatever else is wrong with it."""
    raw = Raw({}, "kms.toml", tmp_path, {"PIN": PASSPHRASE})
    for wrong in ({"retries": 0}, {"retrys": 1}, {"key": 1}):
        with pytest.raises(ConfigError) as caught:
            structure(Vault, {"pin": {"env": "PIN"}, **wrong}, "[instances.x]", raw)
        text = str(caught.value) + "".join(traceback.format_exception(caught.value))
        assert PASSPHRASE not in text


def test_a_provider_that_cannot_be_built_is_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error may hold the secret that it was given; relays do not quote such errors either."""
    file = tmp_path / "kms.toml"
    file.write_text('[instances.v]\nprovider = "vault"\npin = { env = "VAULT_PIN" }\n')
    monkeypatch.setenv("VAULT_PIN", PASSPHRASE)
    with pytest.raises(ConfigError) as caught:
        Kms.from_config(file, plugins=[found("vault", providers_module(VaultProvider))])
    assert "RuntimeError" in str(caught.value)
    assert PASSPHRASE not in str(caught.value)


@pytest.mark.parametrize("line", ['pin = "{}"', "pin = {{ value = '{}' }}", "pin = ['{}']"])
def test_a_secret_written_into_the_file_is_not_repeated(tmp_path: Path, line: str) -> None:
    """The error says how to write it instead."""
    file = tmp_path / "kms.toml"
    file.write_text('[instances.v]\nprovider = "vault"\n' + line.format(PASSPHRASE) + "\n")
    with pytest.raises(ConfigError, match="never written down here") as caught:
        Kms.from_config(file, plugins=[found("vault", providers_module(VaultProvider))])
    assert PASSPHRASE not in str(caught.value)


def test_a_syntax_error_does_not_quote_the_file(tmp_path: Path) -> None:
    """The place is enough."""
    file = tmp_path / "kms.toml"
    file.write_text(f'[instances.v]\npin = "{PASSPHRASE}\n')
    with pytest.raises(ConfigError, match="line 2") as caught:
        load(file)
    assert PASSPHRASE not in str(caught.value)


def test_a_closed_client_is_refused_without_its_arguments(services: dict[str, Faulty]) -> None:
    """Not even in a traceback: frames show code, not values."""
    kms = client_for(services)
    kms.close()
    with pytest.raises(InvalidRequest) as caught:
        kms.seal(PLAINTEXT, CONTEXT)
    assert not leaks("".join(traceback.format_exception(caught.value)), PLAINTEXT)


# --- what is wiped, and what all looks alike ------------------------------------------------------


def test_the_data_key_is_wiped_when_a_seal_ends(
    services: dict[str, Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it ends."""
    keys: list[bytearray] = []

    def random_key() -> bytearray:
        keys.append(bytearray(KEY))
        return keys[-1]

    monkeypatch.setattr("kms_core.wrapping.random_key", random_key)
    with client_for(services) as kms:
        kms.seal(b"x")
        for made in services.values():
            made.always("encrypt", raising(Unavailable, "down"))
        with pytest.raises(AllInstancesFailed):
            kms.seal(b"x")
    assert keys == [bytearray(32)] * 2


def test_what_providers_return_is_wiped_after_use(services: dict[str, Faulty]) -> None:
    """By opening, refusing, rewrapping and direct decryption, where it is a ``bytearray``."""
    returned: list[bytearray] = []

    def keep(_: Call, proceed: Callable[[], Any]) -> Any:
        returned.append(proceed())
        assert any(returned[-1])
        return returned[-1]

    for made in services.values():
        made.always("decrypt", keep)
    with client_for(services) as kms:
        sealed = kms.seal(PLAINTEXT, CONTEXT)
        kms.open(sealed, CONTEXT)
        with pytest.raises(IntegrityError):
            kms.open(sealed)
        kms.rewrap(sealed, add="b")
        kms.decrypt(kms.encrypt(PLAINTEXT))
    assert len(returned) >= 4
    assert not any(map(any, returned))


def test_authentication_failures_of_an_envelope_all_look_the_same(
    services: dict[str, Faulty],
) -> None:
    """Which check failed would help only who is probing."""
    with client_for(services) as kms:
        sealed = kms.seal(PLAINTEXT, CONTEXT)
        size = kms.inspect(sealed).capsule_bytes
        altered = [sealed]
        for position in (8, size - 1, size + 31, len(sealed) - 1):
            changed = bytearray(sealed)
            changed[position] ^= 1
            altered.append(bytes(changed))
        told = set()
        for data, context in zip(altered, [{}, *[CONTEXT] * 4], strict=True):
            with pytest.raises(IntegrityError) as caught:
                kms.open(data, context)
            told.add((type(caught.value), str(caught.value)))
    assert len(told) == 1


def test_no_field_of_an_event_can_hold_bytes() -> None:
    """What is told to observers is names, codes and numbers."""
    for each in attrs.fields(Event):
        assert "bytes" not in str(each.type)
        assert "Any" not in str(each.type)
