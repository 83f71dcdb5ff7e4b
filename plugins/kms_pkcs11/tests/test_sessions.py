"""Tokens come and go, processes fork, threads pile in: the provider goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kms_core import AccessDenied, ConfigError, Context, Secret, Unavailable
from kms_core.testing.servers import SoftHsm
from kms_pkcs11 import module as modules
from kms_pkcs11.provider import Pkcs11Provider

if TYPE_CHECKING:
    from tests.conftest import Providers, SettingsFor

CONTEXT = Context({"tenant": "42"})
DATA_KEY = bytes(32)


@pytest.fixture
def provider(make: Providers) -> Pkcs11Provider:
    """On the shared token."""
    return make()


def until_it_works(provider: Pkcs11Provider, wrapped: Any) -> int:
    """How many calls failed, as outages, before one unwrapped again."""
    for failed in range(200):
        try:
            assert provider.decrypt("aes", wrapped, CONTEXT) == DATA_KEY
        except Unavailable:
            threading.Event().wait(0.02)
        else:
            return failed
    pytest.fail("the token is back, and the provider does not notice")


def test_token_that_is_replaced_costs_nobody_a_call(
    provider: Pkcs11Provider, token: SoftHsm
) -> None:
    """Sessions and handles are made anew, and the call is repeated."""
    wrapped = provider.encrypt("aes", DATA_KEY, CONTEXT)
    token.recreate_token()
    assert provider.decrypt("aes", wrapped, CONTEXT) == DATA_KEY


def test_token_that_comes_back_is_used_again(provider: Pkcs11Provider, token: SoftHsm) -> None:
    """While it is away every call is an outage."""
    wrapped = provider.encrypt("aes", DATA_KEY, CONTEXT)
    token.remove_token()
    try:
        for _ in range(3):
            with pytest.raises(Unavailable):
                provider.decrypt("aes", wrapped, CONTEXT)
            with pytest.raises(Unavailable):
                provider.encrypt("aes", DATA_KEY, CONTEXT)
            with pytest.raises(Unavailable):
                provider.health("aes")
    finally:
        token.restore_token()
    until_it_works(provider, wrapped)


def test_closing_one_instance_does_not_lock_out_another(make: Providers) -> None:
    """They share the login of the process: whoever notices that it is gone logs in again."""
    first, second = make(), make()
    wrapped = first.encrypt("aes", DATA_KEY, CONTEXT)
    assert second.decrypt("aes", wrapped, CONTEXT) == DATA_KEY
    first.close()
    assert second.decrypt("aes", wrapped, CONTEXT) == DATA_KEY
    assert first.decrypt("aes", wrapped, CONTEXT) == DATA_KEY  # closed is not forbidden


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no os.fork")
def test_fork_after_use(provider: Pkcs11Provider) -> None:
    """The child initialises the module anew; the parent's sessions stay good."""
    wrapped = provider.encrypt("aes", DATA_KEY, CONTEXT)
    child = os.fork()
    if child == 0:
        try:
            ok = provider.decrypt("aes", wrapped, CONTEXT) == DATA_KEY
            ok = ok and bool(provider.encrypt("aes", DATA_KEY, CONTEXT))
        except BaseException:  # noqa: BLE001  a child never returns
            ok = False
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert provider.decrypt("aes", wrapped, CONTEXT) == DATA_KEY


def test_refused_pin_is_not_tried_again(token: SoftHsm, make: Providers) -> None:
    """Three wrong ones lock most tokens.  Neither error shows it."""
    logins = Logins()
    provider = make(pin=Secret("wrong-pin"))
    logins.watch(provider)
    for _ in range(3):
        with pytest.raises(AccessDenied) as caught:
            provider.encrypt("aes", DATA_KEY, CONTEXT)
        assert "wrong-pin" not in f"{caught.value}{caught.value.__cause__!r}"
    assert logins.pins == ["wrong-pin"]


class Logins:
    """The PINs that tokens were opened with."""

    def __init__(self) -> None:
        self.pins: list[str] = []

    def watch(self, provider: Pkcs11Provider) -> None:
        """Note what this provider's token is opened with."""
        sessions = provider._sessions
        find = sessions._find_token
        watched = self

        class Watching:
            def __init__(self, token: Any) -> None:
                self._token = token

            def __getattr__(self, name: str) -> Any:
                return getattr(self._token, name)

            def open(self, **options: Any) -> Any:
                if "user_pin" in options:
                    watched.pins.append(options["user_pin"])
                return self._token.open(**options)

        def find_watched(lib: Any) -> Any:
            return Watching(find(lib))

        sessions._find_token = find_watched  # type: ignore[method-assign]


def test_login_happens_once_however_many_sessions(make: Providers) -> None:
    """The others are logged in by it."""
    provider, logins = make(), Logins()
    logins.watch(provider)
    for _ in range(5):
        provider.encrypt("aes", DATA_KEY, CONTEXT)
    assert len(logins.pins) == 1


def test_module_that_is_none_is_a_configuration_error(
    settings_for: SettingsFor, tmp_path: Path
) -> None:
    """Missing, or a file of another kind."""
    text = tmp_path / "module.so"
    text.write_text("no module")
    for path in (tmp_path / "missing.so", text):
        provider = Pkcs11Provider(settings_for(module=path))
        with pytest.raises(ConfigError, match=path.name):
            provider.prepare()


def test_one_module_is_locked_one_way(token: SoftHsm, make: Providers) -> None:
    """Two instances that want it differently are told so."""
    make().prepare()
    with pytest.raises(ConfigError, match="choose one"):
        make(locking="os").prepare()


def test_renewing_twice_at_once_is_renewing_once(provider: Pkcs11Provider) -> None:
    """Whoever comes second finds a newer epoch; a third in a row is put off."""
    provider.encrypt("aes", DATA_KEY, CONTEXT)
    module = provider._sessions._module
    module._renewed_at = float("-inf")
    epoch = module.epoch
    assert module.renew(epoch)
    assert module.renew(epoch)
    assert module.epoch == epoch + 1
    assert not module.renew(module.epoch)


THREADS = """
import sys, threading
from pathlib import Path
from kms_core import Context, Secret
from kms_pkcs11.provider import Pkcs11Provider
from kms_pkcs11.settings import Pkcs11Settings
module, token, locking, instances = sys.argv[1:]
pin = sys.stdin.read()
context = Context({"tenant": "42"})
def make():
    return Pkcs11Provider(Pkcs11Settings(
        module=Path(module), token=token, pin=Secret(pin), key="aes", locking=locking))
providers = [make() for _ in range(int(instances))]
failures = []
def work(number):
    provider = providers[number % len(providers)]
    try:
        for _ in range(1000):
            wrapped = provider.encrypt("aes", bytes(32), context)
            assert provider.decrypt("aes", wrapped, context) == bytes(32)
    except BaseException as exc:
        failures.append(exc)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for provider in providers: provider.close()
print("failures", failures)
"""


@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize("locking", ["global", "os"])
def test_eight_threads_make_a_thousand_calls_each(
    token: SoftHsm, locking: str, instances: int
) -> None:
    """In a process of their own: what goes wrong here ends the interpreter."""
    command = [sys.executable, "-c", THREADS, str(token.module), token.token, locking]
    done = subprocess.run(
        [*command, str(instances)],
        input=token.pin,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "failures []\n"), done.stderr


def test_module_that_locks_for_itself_is_renewed_when_nobody_is_inside(
    token: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finalising a module under somebody's feet would crash the process."""
    monkeypatch.setattr(modules, "PATIENCE", 0.05)
    module = modules.Module(token.module, "module")
    made: list[int] = []
    module._lib = object()
    monkeypatch.setattr(module, "_initialize_again", lambda: made.append(1))
    inside, leave = threading.Event(), threading.Event()

    def use() -> None:
        with module.use():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=use)
    thread.start()
    inside.wait(30)
    assert not module.renew(0)
    leave.set()
    thread.join()
    assert module.renew(0)
    assert made == [1]
