"""Tokens come and go, processes fork, threads pile in: the provider goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kms_core import AccessDenied, ConfigError, Context, KeyNotFound, Secret, Unavailable
from kms_core.testing.servers import SoftHsm
from kms_pkcs11 import module as modules
from kms_pkcs11.provider import Pkcs11Provider
from kms_pkcs11.sessions import Sightings
from kms_pkcs11.uri import KeyName

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


def test_module_has_one_lock_whatever_it_is_called(
    token: SoftHsm, make: Providers, tmp_path: Path
) -> None:
    """A link to it leads to the same state in the process."""
    link = tmp_path / "link.so"
    link.symlink_to(token.module)
    first, second = make(), make(module=link)
    wrapped = first.encrypt("aes", DATA_KEY, CONTEXT)
    assert second.decrypt("aes", wrapped, CONTEXT) == DATA_KEY
    assert second._sessions._module is first._sessions._module


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


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(provider: Pkcs11Provider, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the provider's sessions and of its module."""
    clock, sessions = Clock(), provider._sessions
    monkeypatch.setattr(sessions, "_sightings", Sightings(clock))
    monkeypatch.setattr(sessions._module, "_clock", clock)
    monkeypatch.setattr(sessions._module, "_renewed_at", float("-inf"))
    return clock


def test_missing_key_disturbs_the_module_only_now_and_then(
    token: SoftHsm, make: Providers, clock: Clock
) -> None:
    """A retired key that was deleted is asked for again and again, and others use the module."""
    provider = make("aes", also_open=("deleted",))
    provider._sessions._sightings = Sightings(clock)
    provider.encrypt("aes", DATA_KEY, CONTEXT)
    module = provider._sessions._module
    uri = f"pkcs11:token={token.token};object=deleted"
    epochs = []
    for pause in (0, 1, 1, 60, 1):
        clock.now += pause
        with pytest.raises(KeyNotFound):
            provider.describe_key(uri)
        epochs.append(module.epoch)
    first = epochs[0]
    assert epochs == [first, first, first, first + 1, first + 1]
    assert provider.encrypt("aes", DATA_KEY, CONTEXT)


@pytest.mark.parametrize(("kind", "hook"), [("SECRET_KEY", "aes"), ("PRIVATE_KEY", "ec")])
def test_key_that_was_there_is_missed_only_after_a_renewal(
    make: Providers, clock: Clock, kind: Any, hook: str
) -> None:
    """Modules that have lost their token say that there is no key."""
    provider = make(hook)
    sessions = provider._sessions
    sessions._sightings = Sightings(clock)
    provider.describe_key(hook)
    nobody = KeyName("", "", "nobody")
    sessions._sightings.found(nobody, kind)
    module = sessions._module
    module._renewed_at = clock.now
    with pytest.raises(Unavailable, match="was there"):
        sessions.run(lambda session: session.kind_of(nobody))
    clock.now += 60
    with pytest.raises(KeyNotFound):
        sessions.run(lambda session: session.kind_of(nobody))


def test_module_that_does_not_come_up_again_is_tried_at_the_next_call(
    provider: Pkcs11Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finalised and not initialised, it would be dead until the process ends."""
    import pkcs11

    provider.encrypt("aes", DATA_KEY, CONTEXT)
    module = provider._sessions._module
    honest = module._lib

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(honest, name)

        def initialize(self) -> None:
            raise pkcs11.exceptions.DeviceError

    module._lib = Failing()
    module._renewed_at = float("-inf")
    with pytest.raises(pkcs11.exceptions.DeviceError):
        module.renew(module.epoch)
    with pytest.raises(Unavailable):
        provider.encrypt("aes", DATA_KEY, CONTEXT)
    module._lib = honest
    assert provider.encrypt("aes", DATA_KEY, CONTEXT)


def test_service_that_is_away_when_the_module_is_loaded_is_an_outage(
    settings_for: SettingsFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the configuration's fault: it is worth another try."""
    import pkcs11

    def away(_path: str) -> Any:
        raise pkcs11.exceptions.DeviceError

    monkeypatch.setattr(pkcs11, "lib", away)
    file = tmp_path / "module.so"
    file.touch()
    provider = Pkcs11Provider(settings_for(module=file))
    with pytest.raises(Unavailable):
        provider.prepare()


@pytest.mark.parametrize(
    ("code", "kind"), [(0x07, ConfigError), (0x0A, ConfigError), (0x30, Unavailable)]
)
def test_module_that_cannot_lock_for_itself_is_told_from_one_that_is_unwell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, kind: type[Exception]
) -> None:
    """The one needs another setting, the other patience."""

    class Library:
        def __init__(self, _path: str) -> None:
            self.C_Finalize = type("Function", (), {"__call__": lambda *_: 0})()
            self.C_Initialize = type("Function", (), {"__call__": lambda *_: code})()

    monkeypatch.setattr("ctypes.CDLL", Library)
    with pytest.raises(kind):
        modules.Module(tmp_path, "os")._initialize_with_locking()


def test_forgetting_spares_what_others_made_since(provider: Pkcs11Provider) -> None:
    """Two threads that fail at once mend once: the second finds a good login."""
    provider.encrypt("aes", DATA_KEY, CONTEXT)
    sessions = provider._sessions
    old = sessions._pool
    assert old is not None
    session = old.take()
    assert session is not None
    sessions._forget(old)
    provider.encrypt("aes", DATA_KEY, CONTEXT)
    new = sessions._pool
    sessions._forget(old)
    sessions._forget(None)
    assert sessions._pool is new is not old
    sessions._give_back(old, session)
    assert old.idle == []


def test_every_session_hanging_is_an_outage(
    provider: Pkcs11Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for ever would take the caller down as well."""
    monkeypatch.setattr("kms_pkcs11.sessions._WAIT", 0.01)
    sessions = provider._sessions
    sessions._free = threading.Semaphore(0)
    with pytest.raises(Unavailable, match="max_sessions"):
        provider.encrypt("aes", DATA_KEY, CONTEXT)


def test_interrupted_call_leaves_no_session_behind(provider: Pkcs11Provider) -> None:
    """It may be in the middle of anything."""

    def interrupt(_session: Any) -> None:
        raise KeyboardInterrupt

    provider.encrypt("aes", DATA_KEY, CONTEXT)
    with pytest.raises(KeyboardInterrupt):
        provider._sessions.run(interrupt)
    pool = provider._sessions._pool
    assert pool is not None
    assert pool.idle == []
    assert provider.encrypt("aes", DATA_KEY, CONTEXT)


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


REPLACING = """
import sys, threading
from pathlib import Path
from kms_core import Context, Secret, Unavailable
from kms_core.testing.servers import SoftHsm
from kms_pkcs11.provider import Pkcs11Provider
from kms_pkcs11.settings import Pkcs11Settings
locking, = sys.argv[1:]
context = Context({"tenant": "42"})
failures, outages, done = [], [], threading.Event()
def work(provider, wrapped):
    while not done.is_set():
        try:
            assert provider.decrypt("aes", wrapped, context) == bytes(32)
            provider.encrypt("aes", bytes(32), context)
        except Unavailable as exc:
            outages.append(exc)
        except BaseException as exc:
            failures.append(exc)
with SoftHsm() as token:
    token.create_key("aes")
    settings = Pkcs11Settings(module=token.module, token=token.token, pin=Secret(token.pin),
                              key="aes", locking=locking)
    providers = [Pkcs11Provider(settings) for _ in range(2)]
    wrapped = providers[0].encrypt("aes", bytes(32), context)
    threads = [threading.Thread(target=work, args=(providers[n % 2], wrapped)) for n in range(8)]
    for thread in threads: thread.start()
    for _ in range(5):
        done.wait(0.4)
        token.recreate_token()
    done.wait(0.4)
    done.set()
    for thread in threads: thread.join()
    for provider in providers:
        for attempt in range(100):
            try:
                assert provider.decrypt("aes", wrapped, context) == bytes(32)
                break
            except Unavailable:
                threading.Event().wait(0.05)
        else:
            failures.append("not recovered")
        provider.close()
print("failures", failures)
print("outages", len(outages), set(map(str, outages)), file=sys.stderr)
"""


@pytest.mark.parametrize("locking", ["global", "os"])
def test_token_that_is_replaced_under_eight_threads(softhsm: Path, locking: str) -> None:
    """Outages while it is gone at most; nothing is lost, altered or stuck afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", REPLACING, locking],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "failures []\n"), done.stderr


@pytest.mark.parametrize("locking", ["os", "module"])
def test_module_that_locks_for_itself_is_used_and_renewed(
    token: SoftHsm, make: Providers, tmp_path: Path, locking: str
) -> None:
    """A copy of the module is another module, with a state of its own."""
    copy = tmp_path / "libcopy.so"
    shutil.copy(token.module, copy)
    provider = make(module=copy, locking=locking)
    wrapped = provider.encrypt("aes", DATA_KEY, CONTEXT)
    assert provider._sessions._module.renew(0)
    assert provider.decrypt("aes", wrapped, CONTEXT) == DATA_KEY


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
