"""What a provider makes of a service that fails: the class of each error, and no second request.

Routing, retries and breaker read nothing but that class, so a wrong one sends every caller the
wrong way.  The fixture ``panel`` makes the service fail; without it everything here is skipped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest
from attrs import define, frozen

from kms_core import errors
from kms_core.context import Context
from kms_core.errors import (
    AccessDenied,
    DeadlineExceeded,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    Throttled,
    Unavailable,
)
from kms_core.testing.checks import (
    MARKER,
    decrypt,
    encrypt,
    expect,
    expect_secretive,
    kind_of,
    public_key,
    sign,
    verify,
)
from kms_core.testing.hooks import call
from kms_core.testing.servers.panel import OF_THE_LINE, Failure, Panel
from kms_core.testing.suite.declared import Declared
from kms_core.types import MAC_ALGORITHMS, Health, KeyInfo

RETRY_AFTER: Final = 7.0  # seconds that a throttling service asks for
_SECRET: Final = MARKER.encode().ljust(32, b"!")  # as long as a data key, which every key wraps
_CONTEXT: Final = Context({"tenant": MARKER})

#: What each failure is to be told as.
CLASS_OF: Final[Mapping[Failure, type[KMSError]]] = {
    Failure.REFUSE: Unavailable,
    Failure.HANG: DeadlineExceeded,
    Failure.RESET: Unavailable,
    Failure.THROTTLE: Throttled,
    Failure.SERVER_ERROR: Unavailable,
    Failure.MALFORMED: Unavailable,
    Failure.ACCESS_DENIED: AccessDenied,
    Failure.KEY_DISABLED: KeyDisabled,
    Failure.KEY_NOT_FOUND: KeyNotFound,
    Failure.WRONG_KEY: Unavailable,
    Failure.CORRUPT_CRC: Unavailable,
}
#: Hooks whose answer has nothing in it that the failure would spoil.
_SPARED: Final[Mapping[Failure, frozenset[str]]] = {
    Failure.MALFORMED: frozenset({"describe_key"}),
    Failure.WRONG_KEY: frozenset({"health", "describe_key", "verify"}),
    Failure.CORRUPT_CRC: frozenset({"health", "describe_key"}),
}
#: States of a key, which some hooks are there to tell rather than to stumble over.
_TOLD: Final[Mapping[Failure, frozenset[str]]] = {
    Failure.ACCESS_DENIED: frozenset({"health"}),
    Failure.KEY_DISABLED: frozenset({"health", "describe_key", "public_key"}),
    Failure.KEY_NOT_FOUND: frozenset({"health"}),
}
#: Those that reach the service, so that the panel counts the requests.
_COUNTED: Final = tuple(failure for failure in CLASS_OF if failure not in OF_THE_LINE)
_QUICK: Final = tuple(failure for failure in CLASS_OF if failure is not Failure.HANG)


@frozen
class Ask:
    """A call of one hook that fails the test if the answer is not the right one."""

    hook: str
    ask: Callable[[], Any]


@frozen
class Faults:
    """A service that can be made to fail, and what to ask it meanwhile."""

    panel: Panel
    asks: tuple[Ask, ...]


@define
class _Outcome:
    """How a call ended that another thread made: ``None`` and ``None`` if it has not."""

    answer: Any = None
    error: BaseException | None = None


class Failing(Declared):
    """Each failure of the panel, put to every hook there is."""

    @pytest.fixture
    def faults(
        self,
        request: pytest.FixtureRequest,
        panel: Panel | None,
        signing_key: tuple[Any, str] | None,
        algorithm: str | None,
    ) -> Iterator[Faults]:
        """Not for overriding.  Everything is asked once while the service is well."""
        if panel is None:
            pytest.skip("declared: the fixture panel returns None")
        ours = request.getfixturevalue("provider"), request.getfixturevalue("key_id")
        asks = [*self._asks_of_any_key(*ours)]
        if self.encrypts:
            asks += self._asks_of_wrapping(*ours)
        if algorithm is not None and self.has_sign:
            asks += self._asks_of_signing(signing_key or ours, algorithm)
        for each in asks:
            each.ask()  # connects, logs in and finds out what an instance finds out once
        yield Faults(panel, tuple(asks))
        panel.heal()

    def test_refused_connection_is_unavailable(self, faults: Faults) -> None:
        """Nobody listens."""
        self._all_fail(faults, Failure.REFUSE)

    def test_hanging_service_is_given_up_in_time(self, faults: Faults) -> None:
        """The time-out that was configured is kept, and told apart from other outages."""
        self._all_fail(faults, Failure.HANG)

    def test_broken_connection_is_unavailable(self, faults: Faults) -> None:
        """It breaks in the middle of an answer."""
        self._all_fail(faults, Failure.RESET)

    def test_slow_answer_is_right_or_late(self, faults: Faults) -> None:
        """A good answer that takes its time is the answer, unless it takes too long."""
        _skip_unless_possible(faults, Failure.SLOW)
        faults.panel.fail(Failure.SLOW, seconds=self.attempt_timeout / 2)
        for each in faults.asks:
            outcome = self._asked(faults, each)
            if outcome.error is not None:
                _expect_kind(each, outcome.error, DeadlineExceeded)

    def test_throttling_is_told(self, faults: Faults) -> None:
        """Over quota is no outage: it does not count against the instance."""
        for error in self._all_fail(faults, Failure.THROTTLE):
            after = getattr(error, "retry_after", None)
            expect(after is None or after >= 0, f"retry_after is {after!r}")

    def test_throttling_says_how_long_to_wait(self, faults: Faults) -> None:
        """Seconds that the service tells reach the caller."""
        if not self.says_retry_after:
            pytest.skip("declared: says_retry_after = False")
        for error in self._all_fail(faults, Failure.THROTTLE, seconds=RETRY_AFTER):
            after = getattr(error, "retry_after", None)
            expect(
                after is not None and abs(after - RETRY_AFTER) <= 1.0,
                f"the service asked for {RETRY_AFTER} seconds, and retry_after is {after!r}",
            )

    def test_unwell_service_is_unavailable(self, faults: Faults) -> None:
        """What it says of itself counts as much as silence."""
        self._all_fail(faults, Failure.SERVER_ERROR)

    def test_malformed_answer_is_no_answer(self, faults: Faults) -> None:
        """A success without its fields is an outage, neither a result nor an accident."""
        self._all_fail(faults, Failure.MALFORMED)

    def test_denied_access_is_told(self, faults: Faults) -> None:
        """Trying again does not help, another instance may."""
        self._all_fail(faults, Failure.ACCESS_DENIED)

    def test_disabled_key_is_told(self, faults: Faults) -> None:
        """The service is well, and the key's owner has decided."""
        self._all_fail(faults, Failure.KEY_DISABLED)

    def test_absent_key_is_told(self, faults: Faults) -> None:
        """The service is well, and has no such key."""
        self._all_fail(faults, Failure.KEY_NOT_FOUND)

    def test_answer_of_another_key_is_refused(self, faults: Faults) -> None:
        """What another key made is lost if that key is, so it must not pass for ours."""
        self._all_fail(faults, Failure.WRONG_KEY)

    def test_wrong_checksum_is_noticed(self, faults: Faults) -> None:
        """An answer that was altered on its way is no answer."""
        self._all_fail(faults, Failure.CORRUPT_CRC)

    @pytest.mark.parametrize("failure", _COUNTED, ids=str)
    def test_failing_call_is_one_request(self, faults: Faults, failure: Failure) -> None:
        """One place decides about retries, and it is not the provider."""
        _skip_unless_possible(faults, failure)
        faults.panel.fail(failure)
        for each in self._hit(faults, failure):
            if each.hook == "describe_key":  # the one hook that may ask twice
                continue
            operation = self.operations.get(each.hook)
            before = faults.panel.count(operation)
            self._asked(faults, each)
            sent = faults.panel.count(operation) - before
            expect(sent == 1, f"{each.hook} sent {sent} requests where it failed with the first")

    @pytest.mark.parametrize("failure", CLASS_OF, ids=str)
    def test_service_that_recovers_is_used_again(self, faults: Faults, failure: Failure) -> None:
        """Nothing of a failure stays behind in the instance."""
        _skip_unless_possible(faults, failure)
        faults.panel.fail(failure)
        for each in self._hit(faults, failure):
            self._asked(faults, each)
        faults.panel.heal()
        for each in faults.asks:
            error = self._asked(faults, each).error
            told = "" if error is None else f"{each.hook} raised {kind_of(error)} after recovery"
            expect(error is None, told)

    def test_service_errors_show_no_secret(self, faults: Faults) -> None:
        """No error repeats plaintext, message or context, whatever the service said."""
        errors: list[KMSError] = []
        for failure in _QUICK:
            if failure in faults.panel.failures:
                faults.panel.fail(failure)
                outcomes = [self._asked(faults, each) for each in self._hit(faults, failure)]
                faults.panel.heal()
                errors += [out.error for out in outcomes if isinstance(out.error, KMSError)]
        expect_secretive(errors)

    # What is asked

    def _asks_of_any_key(self, provider: Any, key_id: str) -> Iterator[Ask]:
        yield Ask("health", lambda: call(provider, "health", key_id=key_id))
        if self.describes:
            yield Ask("describe_key", lambda: call(provider, "describe_key", key_id=key_id))

    def _asks_of_wrapping(self, provider: Any, key_id: str) -> Iterator[Ask]:
        sealed = encrypt(provider, key_id, _SECRET, _CONTEXT)

        def unwrap() -> Any:
            opened = decrypt(provider, sealed, _CONTEXT)
            expect(opened == _SECRET, "decrypt returned something else than was wrapped")
            return opened

        def generate() -> Any:
            return call(provider, "generate_data_key", key_id=key_id, context=_CONTEXT)

        yield Ask("encrypt", lambda: encrypt(provider, key_id, _SECRET, _CONTEXT))
        yield Ask("decrypt", unwrap)
        if self.has_data_key:
            yield Ask("generate_data_key", generate)
        if self.has_public_key and self.wraps_offline:
            yield Ask("public_key", lambda: public_key(provider, key_id))

    def _asks_of_signing(self, signer: tuple[Any, str], algorithm: str) -> Iterator[Ask]:
        provider, key_id = signer
        signature = sign(provider, key_id, _SECRET, algorithm)

        def accept() -> Any:
            accepted = verify(provider, signature, _SECRET, algorithm)
            expect(accepted, "verify refuses a good signature")
            return accepted

        yield Ask("sign", lambda: sign(provider, key_id, _SECRET, algorithm))
        if self.has_verify:
            yield Ask("verify", accept)
        if self.has_public_key and algorithm not in MAC_ALGORITHMS:
            yield Ask("public_key", lambda: public_key(provider, key_id))

    # What comes of it

    def _all_fail(
        self, faults: Faults, failure: Failure, *, seconds: float | None = None
    ) -> list[KMSError]:
        """Every hook that ``failure`` hits tells it by the right class; the errors."""
        __tracebackhide__ = True
        _skip_unless_possible(faults, failure)
        faults.panel.fail(failure, seconds=seconds)
        found = []
        for each in self._hit(faults, failure):
            outcome = self._asked(faults, each)
            if outcome.error is not None:
                found.append(_expect_kind(each, outcome.error, CLASS_OF[failure]))
            elif each.hook not in _TOLD.get(failure, ()) or _says_well(outcome.answer):
                pytest.fail(f"{each.hook} took {failure.value} for an answer")
        return found

    def _hit(self, faults: Faults, failure: Failure) -> Iterator[Ask]:
        spared = _SPARED.get(failure, frozenset())
        if failure is Failure.WRONG_KEY and not self.decrypt_names_key:
            spared |= {"decrypt"}
        for each in faults.asks:
            if each.hook not in spared and failure not in self.not_hit_by.get(each.hook, ()):
                yield each

    def _asked(self, faults: Faults, each: Ask) -> _Outcome:
        """How a call ends, in a thread of its own: one that ignores time-outs ends the test."""
        __tracebackhide__ = True
        outcome = _Outcome()

        def work() -> None:
            try:
                outcome.answer = each.ask()
            except BaseException as exc:  # noqa: BLE001  judged by the test's own thread
                outcome.error = exc

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self.attempt_timeout + self.patience)
        if thread.is_alive():
            faults.panel.heal()
            thread.join(self.patience)
            pytest.fail(
                f"{each.hook} did not end {self.patience} s after its time-out of "
                f"{self.attempt_timeout} s"
            )
        return outcome


def _skip_unless_possible(faults: Faults, failure: Failure) -> None:
    if failure not in faults.panel.failures:
        pytest.skip(f"declared: the panel has no {failure.value}")


def _expect_kind(each: Ask, error: BaseException, kind: type[KMSError]) -> KMSError:
    """One of the contract's own classes: a subclass from elsewhere may carry other flags."""
    __tracebackhide__ = True
    if isinstance(error, pytest.fail.Exception):  # the answer was no good
        raise error
    ours = type(error) is getattr(errors, kind_of(error), None)
    if not isinstance(error, kind) or not ours:
        pytest.fail(f"{each.hook} raised {kind_of(error)}; raise {kind.__name__}")
    return error


def _says_well(answer: Any) -> bool:
    """Whether an answer about a key claims that it can be used."""
    match answer:
        case Health(ok=ok):
            return ok
        case KeyInfo(state=state):
            return state == "enabled"
    return False  # a public key does not say
