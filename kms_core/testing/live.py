"""The conformance suite against an instance that is in use: what ``kms conformance`` runs.

Nothing is declared, so what the key can do is found out by asking it.  Nothing is changed either,
unless rotation is allowed; and a service that is somebody's is not made to fail.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar, Final, Literal

import pytest
from attrs import define, field, frozen

from kms_core.errors import InvalidRequest, KMSError, UnsupportedOperation
from kms_core.testing import conformance
from kms_core.testing.checks import CONTEXT, KEY_BYTES
from kms_core.testing.conformance import ProviderConformance
from kms_core.testing.hooks import call, marked_hooks
from kms_core.types import MAC_ALGORITHMS, MAX_SIGNED_BYTES, RSA_OAEP, SIGNATURE_ALGORITHMS

#: Opens a new instance, ready to be asked, and closes it; with the id of its key.
Connect = Callable[[], AbstractContextManager[tuple[Any, str]]]

_HOOK_OF: Final[Mapping[str, str]] = {
    "has_data_key": "generate_data_key",
    "describes": "describe_key",
    "rotates": "rotate_key",
    "has_sign": "sign",
    "has_verify": "verify",
    "has_public_key": "public_key",
}
#: Each try is a request that somebody pays for.
_FRUGAL: Final[Mapping[str, int]] = {
    "fuzz_examples": 10,
    "altered_bytes": 64,
    "thread_round_trips": 3,
}
_MIN_PLAINTEXT: Final = 1  # what the contract asks for, as far as the key can do it
_MAX_PLAINTEXT: Final = 4096
_MESSAGE_BYTES: Final = 64
_ELSEWHERE: Final[Mapping[str, str]] = {
    "declared: the fixture panel returns None": "this service is not to be made to fail",
    "declared: the fixture other_key returns None": "only one key is configured here",
    "declared: may_rotate = False": "the key is changed only with --rotate",
}
#: Settings of a developer's own pytest, which are not meant for this run.
_FOREIGN_VARIABLES: Final = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")


@frozen
class Check:
    """One check of the suite; ``reason`` says why it failed or was left out."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: str = ""


def run(
    connect: Connect, plugin_module: str | None, *, may_rotate: bool = False, expression: str = ""
) -> tuple[Check, ...]:
    """Every check that ``expression`` (as of ``pytest -k``) selects, in order.

    Raises what the instance raises when it is first asked, and ``InvalidRequest`` if the
    expression is none or selects nothing.
    """
    with connect() as (provider, key_id):
        facts = learn(provider, key_id)
    declared = {
        **facts,
        **_FRUGAL,
        "plugin_module": plugin_module,
        "may_rotate": may_rotate,
        "connect": staticmethod(connect),
    }
    runner = _Runner(type("Live", (_Live,), declared))
    _run_pytest(runner, expression)
    if not runner.checks:
        raise InvalidRequest(
            f"no check matches {expression!r}: -k takes words of names, and, or, not"
        )
    return tuple(runner.checks)


def learn(provider: Any, key_id: str) -> dict[str, Any]:
    """What to declare about a key, found out by asking it."""
    hooks = marked_hooks(provider)
    facts: dict[str, Any] = {name: hook in hooks for name, hook in _HOOK_OF.items()}
    algorithms = _public_algorithms(provider, key_id) if facts["has_public_key"] else ()
    facts["wraps_offline"] = RSA_OAEP in algorithms
    facts["encrypts"] = _wraps(provider, key_id, KEY_BYTES)
    if facts["encrypts"]:
        wraps = partial(_wraps, provider, key_id)
        facts["min_plaintext"] = _fewest(wraps, KEY_BYTES, _MIN_PLAINTEXT)
        facts["max_plaintext"] = _most(wraps, KEY_BYTES, _MAX_PLAINTEXT)
    signs = tuple(name for name in algorithms if name in SIGNATURE_ALGORITHMS)
    if facts["has_sign"] and not signs and not facts["encrypts"]:
        signs = tuple(name for name in sorted(MAC_ALGORITHMS) if _signs(provider, key_id, name))
    facts["signs"] = signs if facts["has_sign"] else ()
    facts["signed_bytes"] = {
        name: _message_bounds(provider, key_id, name) for name in facts["signs"]
    }
    return facts


def _public_algorithms(provider: Any, key_id: str) -> tuple[str, ...]:
    try:
        algorithms: tuple[str, ...] = call(provider, "public_key", key_id=key_id).algorithms
    except (InvalidRequest, UnsupportedOperation):
        return ()
    return algorithms


def _wraps(provider: Any, key_id: str, size: int) -> bool:
    return _takes(provider, "encrypt", key_id=key_id, plaintext=bytes(size), context=CONTEXT)


def _signs(provider: Any, key_id: str, algorithm: str, size: int = _MESSAGE_BYTES) -> bool:
    return _takes(provider, "sign", key_id=key_id, data=bytes(size), algorithm=algorithm)


def _message_bounds(provider: Any, key_id: str, algorithm: str) -> tuple[int, int]:
    takes = partial(_signs, provider, key_id, algorithm)
    return _fewest(takes, _MESSAGE_BYTES, 0), _most(takes, _MESSAGE_BYTES, MAX_SIGNED_BYTES)


def _takes(provider: Any, hook: str, **arguments: Any) -> bool:
    """Whether a request is one that this key can do; an outage leaves as it came."""
    try:
        call(provider, hook, **arguments)
    except (InvalidRequest, UnsupportedOperation):
        return False
    except KMSError:
        raise
    except Exception:  # noqa: BLE001  a defect, which the suite will tell more about
        return True
    return True


def _fewest(takes: Callable[[int], bool], known: int, limit: int) -> int:
    """The smallest size from ``limit`` on that is taken; ``known`` is."""
    return next(size for size in range(limit, known + 1) if size == known or takes(size))


def _most(takes: Callable[[int], bool], known: int, limit: int) -> int:
    """The largest size up to ``limit`` that is taken; ``known`` is."""
    if takes(limit):
        return limit
    while limit - known > 1:
        middle = (known + limit) // 2
        if takes(middle):
            known = middle
        else:
            limit = middle
    return known


class _Live(ProviderConformance):
    """A new instance for every check, as some of them close it."""

    connect: ClassVar[Connect]

    @pytest.fixture
    def _instance(self) -> Iterator[tuple[Any, str]]:
        with type(self).connect() as instance:
            yield instance

    @pytest.fixture
    def provider(self, _instance: tuple[Any, str]) -> Any:
        return _instance[0]

    @pytest.fixture
    def key_id(self, _instance: tuple[Any, str]) -> str:
        return _instance[1]


@define(eq=False)  # pytest keeps its plugins in sets
class _Runner:
    """A pytest plugin that puts the live class in the suite's place, and collects outcomes."""

    suite: type[Any]
    checks: list[Check] = field(factory=list)

    def pytest_pycollect_makeitem(self, collector: Any, name: str) -> Any:
        """The suite itself is no test class, so nothing but this collects it."""
        if name != ProviderConformance.__name__:
            return None
        node = pytest.Class.from_parent(collector, name=name)
        node.obj = self.suite
        return node

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, Any]:
        """One check for each test; what fails after it is a check of its own."""
        report = yield
        name = item.name.removeprefix("test_")
        if report.skipped:
            _, _, reason = report.longrepr
            reason = str(reason).removeprefix("Skipped: ")
            self.checks.append(Check(name, "skipped", _ELSEWHERE.get(reason, reason)))
        elif call.excinfo is not None:
            self.checks.append(Check(name, "failed", _told(call.excinfo.value)))
        elif report.when == "call":
            self.checks.append(Check(name, "passed"))
        return report


def _told(error: BaseException) -> str:
    """What a failure says; of errors that are not ours only the kind: they may quote anything."""
    match error:
        case pytest.fail.Exception():
            return str(error)
        case KMSError():
            return f"{type(error).__name__}: {error}"
    return f"it raised {type(error).__name__}"


def _run_pytest(runner: _Runner, expression: str) -> None:
    """Run quietly, and as if this host's pytest had neither settings nor plugins."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, _plain_environment():
        arguments = [
            conformance.__file__,
            *("-c", os.devnull, "--rootdir", folder, "--noconftest", "--import-mode=importlib"),
            *("-p", "no:cacheprovider", "-p", "no:terminal", "--capture=sys"),
            *(("-k", expression) if expression else ()),
        ]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = pytest.main(arguments, plugins=[runner])
    if code == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code == pytest.ExitCode.INTERNAL_ERROR:
        raise RuntimeError("the test framework failed")


@contextlib.contextmanager
def _plain_environment() -> Iterator[None]:
    before = {name: os.environ.pop(name, None) for name in _FOREIGN_VARIABLES}
    before["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
