"""Every way to fail, of every service, at every operation: what comes of it and what it costs.

``python -m tests.test_fault_matrix`` prints the whole table; as tests, each row is checked.  The
clouds are real servers that fail in their own protocols; the token and the local store, which have
no wire, fail at the provider's boundary.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from kms_core import (
    AccessDenied,
    AllInstancesFailed,
    BreakerPolicy,
    CallPolicy,
    Duration,
    EnvelopePolicy,
    InstanceConfig,
    KeyDisabled,
    Kms,
    KMSError,
    Secret,
    Settings,
    Throttled,
    Unavailable,
)
from kms_core.testing import Fault, Faulty, blocking, echoing, raising, returning
from kms_core.testing.servers import AwsServer, AzureServer, Failure, GcpServer, SoftHsm
from tests.support import NO_CACHE, found, providers_module

DEADLINE, ATTEMPT, HEALTH = 0.6, 0.25, 0.4
MARGIN = 2.0  # seconds that a busy machine may take to notice that time is up
CALLS = CallPolicy(
    deadline=Duration(DEADLINE),
    attempt_timeout=Duration(ATTEMPT),
    health_timeout=Duration(HEALTH),
    cooldown=Duration(0.0),
)
FAILURES = (
    Failure.REFUSE,
    Failure.HANG,
    Failure.RESET,
    Failure.SERVER_ERROR,
    Failure.THROTTLE,
    Failure.MALFORMED,
    Failure.WRONG_KEY,
    Failure.KEY_DISABLED,
    Failure.ACCESS_DENIED,
    Failure.SLOW,
)
SERVICES = ("aws", "azure", "gcp", "pkcs11", "local")
CONTEXT = {"tenant": "42"}

#: Evidence against the service.
COUNTS = frozenset(
    {
        Failure.REFUSE,
        Failure.HANG,
        Failure.RESET,
        Failure.SERVER_ERROR,
        Failure.MALFORMED,
        Failure.WRONG_KEY,
        Failure.SLOW,
    }
)


@frozen
class Rig:
    """One service: a client of it alone, and the switch that makes it fail."""

    kms: Kms
    fail: Callable[[Failure], None]
    heal: Callable[[], None]
    asked: Callable[[], int]


@frozen
class Cell:
    """What came of one operation."""

    service: str
    failure: str
    operation: str
    outcome: str
    attempts: int
    seconds: float
    counted: int

    def __str__(self) -> str:
        head = f"{self.service:<7} {self.failure:<13} {self.operation:<8} {self.outcome:<18}"
        return f"{head} {self.attempts:>2} {self.seconds:6.2f} s {self.counted:>2}"


# --- services ------------------------------------------------------------------------------------


@contextmanager
def cloud(name: str) -> Iterator[Rig]:
    """A server, and what a configuration says of it."""
    servers = {"aws": AwsServer, "azure": AzureServer, "gcp": GcpServer}
    with servers[name]() as server:
        options: dict[str, Any] = _OPTIONS[name](server)
        provider = options.pop("provider")
        made: Settings = _settings(InstanceConfig(provider, options))
        with Kms(made) as kms:
            panel = server.panel

            def fail(failure: Failure) -> None:
                panel.fail(failure)

            yield Rig(kms, fail, panel.heal, panel.count)


def _aws(server: AwsServer) -> dict[str, Any]:
    return {
        "provider": "aws-kms",
        "key": server.create_key("us-east-1"),
        "endpoint_url": server.endpoint_url,
        "insecure": True,
        "access_key_id": Secret("any"),
        "secret_access_key": Secret("any"),
    }


def _azure(server: AzureServer) -> dict[str, Any]:
    server.create_key("app", "RSA")
    return {
        "provider": "azure-keyvault",
        "key": "app",
        "vault_url": server.vault_url,
        "ca_file": str(server.ca_file),
        "verify_challenge": False,
        "token": Secret(server.token),
    }


def _gcp(server: GcpServer) -> dict[str, Any]:
    return {
        "provider": "gcp-kms",
        "key": server.create_key(),
        "endpoint": server.endpoint,
        "insecure": True,
    }


_OPTIONS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "aws": _aws,
    "azure": _azure,
    "gcp": _gcp,
}


@contextmanager
def boundary(name: str) -> Iterator[Rig]:
    """A token or a store whose provider fails on cue."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider, key = _token(stack) if name == "pkcs11" else _store(folder)
        faulty = Faulty(provider)
        release = threading.Event()
        stack.callback(release.set)

        class ReadyMade(type(faulty)):  # type: ignore[misc]
            """The provider that is there, by whichever settings."""

            settings = type(provider).settings

            def __new__(cls, _settings: Any) -> Any:
                return faulty

            def __init__(self, _settings: Any) -> None:
                """It is made already."""

        module = providers_module(ReadyMade)
        options = {name: value for name, value in key.items() if name != "type"}
        instance = InstanceConfig(faulty.type_name, options)
        entry = found(faulty.type_name, module)
        kms = stack.enter_context(Kms(_settings(instance), plugins=[entry]))

        def fail(failure: Failure) -> None:
            release.clear()
            for hook in ("encrypt", "decrypt", "health"):
                if hook == "encrypt" or failure is not Failure.WRONG_KEY:
                    faulty.always(hook, _fault(failure, release, faulty.type_name))

        def asked() -> int:
            return sum(faulty.count(hook) for hook in ("encrypt", "decrypt", "health"))

        def heal() -> None:
            release.set()
            faulty.heal()

        yield Rig(kms, fail, heal, asked)


def _token(stack: ExitStack) -> tuple[Any, dict[str, Any]]:
    from kms_pkcs11.provider import Pkcs11Provider
    from kms_pkcs11.settings import Pkcs11Settings

    token = stack.enter_context(SoftHsm())
    token.create_key("app")
    options: dict[str, Any] = {"module": token.module, "token": token.token, "key": "app"}
    options["pin"] = Secret(token.pin)
    return Pkcs11Provider(Pkcs11Settings(**options)), options


def _store(folder: Path) -> tuple[Any, dict[str, Any]]:
    from kms_local.provider import LocalProvider
    from kms_local.store import KeyStore

    path = folder / "kms-local.keys"
    KeyStore.create(path)
    options = {"path": path, "key": "default"}
    return LocalProvider(LocalProvider.settings(**options)), options


def _fault(failure: Failure, release: threading.Event, scheme: str) -> Fault:
    late = threading.Event()

    def slow(_call: Any, proceed: Callable[[], Any]) -> Any:
        late.wait(2.0)
        return proceed()

    faults: dict[Failure, Fault] = {
        Failure.HANG: blocking(release),
        Failure.SLOW: slow,
        Failure.THROTTLE: raising(Throttled, "over quota"),
        Failure.MALFORMED: returning(None),
        Failure.WRONG_KEY: echoing(f"other-{scheme}:key"),
        Failure.KEY_DISABLED: raising(KeyDisabled, "disabled"),
        Failure.ACCESS_DENIED: raising(AccessDenied, "denied"),
    }
    return faults.get(failure) or raising(Unavailable, failure.value)


def _settings(instance: InstanceConfig) -> Settings:
    return Settings(
        instances={"only": instance},
        calls=CALLS,
        breaker=BreakerPolicy(failure_threshold=1000, timeouts_in_a_row=1000),
        envelope=EnvelopePolicy(allow_weaker=True),
        cache=NO_CACHE,
    )


# --- the matrix ----------------------------------------------------------------------------------


def cells(service: str, failure: Failure, rig: Rig) -> Iterator[Cell]:
    """One row: every operation while the service fails this way."""
    kms = rig.kms
    sealed, direct = kms.seal(b"data", CONTEXT), kms.encrypt(b"data", CONTEXT)
    operations: dict[str, Callable[[], object]] = {
        "seal": lambda: kms.seal(b"data", CONTEXT),
        "open": lambda: kms.open(sealed, CONTEXT),
        "encrypt": lambda: kms.encrypt(b"data", CONTEXT),
        "decrypt": lambda: kms.decrypt(direct, CONTEXT),
        "health": lambda: kms.health().instances["only"].reason,
    }
    rig.fail(failure)
    try:
        for name, operation in operations.items():
            asked, counted = rig.asked(), kms.breakers["only"].failures_in_window
            began = time.monotonic()
            outcome = _outcome(operation)
            seconds = time.monotonic() - began
            yield Cell(
                service,
                failure.value,
                name,
                outcome,
                rig.asked() - asked,
                seconds,
                kms.breakers["only"].failures_in_window - counted,
            )
    finally:
        rig.heal()


def _outcome(operation: Callable[[], object]) -> str:
    """The code of the error, or ``ok``; anything outside the error tree is raised."""
    try:
        result = operation()
    except AllInstancesFailed as exc:
        return exc.attempts[0].error.code if exc.attempts else exc.code
    except KMSError as exc:
        return exc.code
    return str(result).partition(":")[0][:18] if isinstance(result, str) else "ok"


def rig_for(service: str) -> Any:
    """A context manager."""
    return boundary(service) if service in {"pkcs11", "local"} else cloud(service)


#: What each failure may be reported as.
OUTCOMES: Mapping[Failure, frozenset[str]] = {
    Failure.REFUSE: frozenset({"unavailable", "deadline_exceeded"}),
    Failure.HANG: frozenset({"deadline_exceeded"}),
    Failure.RESET: frozenset({"unavailable", "deadline_exceeded"}),
    Failure.SERVER_ERROR: frozenset({"unavailable"}),
    Failure.THROTTLE: frozenset({"throttled"}),
    Failure.MALFORMED: frozenset({"unavailable", "provider_bug"}),
    # what names no key cannot name a wrong one
    Failure.WRONG_KEY: frozenset({"unavailable", "provider_bug", "integrity_error", "ok"}),
    Failure.KEY_DISABLED: frozenset({"key_disabled"}),
    Failure.ACCESS_DENIED: frozenset({"access_denied"}),
    Failure.SLOW: frozenset({"deadline_exceeded"}),
}


@pytest.fixture(scope="module")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Installed where it can be."""
    try:
        SoftHsm.install(Path(__file__).parents[1] / "build" / "softhsm")
    except FileNotFoundError as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("service", SERVICES)
def test_every_failure_is_reported_in_time_and_for_what_it_is(
    service: str, request: pytest.FixtureRequest
) -> None:
    """No surprise for the caller, no call too many for the service, no breaker for a refusal."""
    if service == "pkcs11":
        request.getfixturevalue("softhsm")
    wrong = []
    with rig_for(service) as rig:
        for failure in FAILURES:
            for cell in cells(service, failure, rig):
                print(cell)  # noqa: T201  shown with a failure
                wrong += [f"{cell}: {why}" for why in _complaints(cell, failure)]
            until_well(rig)
    assert not wrong, "\n".join(wrong)


def _complaints(cell: Cell, failure: Failure) -> Iterator[str]:
    limit = HEALTH if cell.operation == "health" else DEADLINE
    if cell.seconds > limit + MARGIN:
        yield f"longer than {limit} s"
    if cell.operation == "health":
        return  # what a service says of itself while it fails is its own
    if cell.outcome not in OUTCOMES[failure]:
        yield f"not {' or '.join(sorted(OUTCOMES[failure]))}"
    if cell.attempts > 2 * CALLS.attempts:  # Azure looks the key up before it wraps
        yield "asked too often"
    if failure not in COUNTS and cell.counted:
        yield "counts against the service"
    if failure in COUNTS and cell.outcome != "ok" and not cell.counted:
        yield "does not count against the service"


def until_well(rig: Rig) -> None:
    """Clients need a moment to connect again."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            rig.kms.open(rig.kms.seal(b"data", CONTEXT), CONTEXT)
        except KMSError:
            threading.Event().wait(0.05)
        else:
            return
    pytest.fail("the service was healed and does not work")


def main() -> None:
    """Print the table for all services, or for those that are named."""
    print("service failure       op       outcome            tries   time  counted")  # noqa: T201
    for service in sys.argv[1:] or SERVICES:
        with rig_for(service) as rig:
            for failure in FAILURES:
                for cell in cells(service, failure, rig):
                    print(cell, flush=True)  # noqa: T201
                until_well(rig)


if __name__ == "__main__":
    main()
