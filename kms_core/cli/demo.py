"""``kms demo``: an outage from beginning to end, on real servers, in a few seconds.

Two key services of AWS KMS run on loopback for as long as it takes, a third is a local file.  One
is cut off, comes back, and everything that the library promises about that is done and checked.
Nothing leaves the machine and nothing stays behind.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import click
from attrs import frozen
from rich.console import Console
from rich.table import Table

from kms_core.cli.exits import ExitCode, say
from kms_core.client import Kms
from kms_core.errors import AllInstancesFailed, KMSError
from kms_core.testing.servers import AwsServer

T = TypeVar("T")

NEEDED: Final = ("flask", "flask_cors", "kms_aws", "kms_local", "moto")
CONTEXT: Final = {"tenant": "42"}
CUSTOMERS: Final = "id,name,city\n1,Ada,London\n2,Grace,New York\n3,Emmy,Erlangen\n"
ORDERS: Final = "id,customer,total\n1,3,99.00\n2,1,12.50\n"
EVERYBODY: Final = ("aws-eu", "aws-us", "local")
PATIENCE: Final = 15.0  # seconds for what takes two or three
MAX_SEALS: Final = 10  # the breaker needs one or two

CONFIGURATION: Final = """\
[instances.aws-eu]
provider = "aws-kms"
key = "{eu_key}"
endpoint_url = "{eu_url}"
insecure = true              # plain http, which is refused beyond this machine
access_key_id = {{ env = "KMS_DEMO_ACCESS_KEY_ID" }}
secret_access_key = {{ env = "KMS_DEMO_SECRET_ACCESS_KEY" }}

[instances.aws-us]
provider = "aws-kms"
key = "{us_key}"
endpoint_url = "{us_url}"
insecure = true
access_key_id = {{ env = "KMS_DEMO_ACCESS_KEY_ID" }}
secret_access_key = {{ env = "KMS_DEMO_SECRET_ACCESS_KEY" }}

[instances.local]
provider = "local"
path = "kms-local.keys"

[breaker]
failure_threshold = 5        # as it is unless set
recovery_timeout = "2s"      # 60 s unless set: nobody wants to watch that

[envelope]
straggler_wait = "5s"        # 0.5 s unless set: this machine may be busy

[calls]
health_timeout = "5s"        # 2 s unless set, likewise
"""


class Unexpected(Exception):
    """Something that the demonstration claims is not so."""


class Narrator:
    """Says what happens as it happens, and stands by it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._acts = 0

    def act(self, title: str) -> None:
        """Begin the next act."""
        self._acts += 1
        self._print(f"\n{self._acts}  {title}", style="bold")

    def say(self, text: str) -> None:
        """What is done, or what to know."""
        self._print(f"     {text}")

    def check(self, claim: str, holds: object, seconds: float | None = None) -> None:
        """A claim that has been put to the test; raises ``Unexpected`` if it does not hold."""
        if not holds:
            raise Unexpected(claim)
        self._print(f"  ok {claim}" + ("" if seconds is None else f"  ({_duration(seconds)})"))

    def quote(self, text: str) -> None:
        """Text as it is written in a file."""
        self._print("")
        for line in text.splitlines():
            self._print(f"       {line}".rstrip(), style="dim")
        self._print("")

    def breakers(self, kms: Kms) -> None:
        """Every instance's breaker as it stands now."""
        table = Table("instance", "breaker", "times opened", "retry in")
        for name, breaker in kms.breakers.items():
            style = "green" if breaker.state == "closed" else "red"
            table.add_row(
                name,
                breaker.state,
                str(breaker.opened_count),
                _duration(breaker.retry_after) if breaker.retry_after else "-",
                style=style,
            )
        self._console.print(table)

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class Watch(logging.Handler):
    """Notes which service was asked and how it ended, from the library's own log records."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._calls: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note one call of a key service."""
        event = getattr(record, "kms_event", None)
        if event is not None and event.operation in {"encrypt", "decrypt"}:
            self._calls.append((event.instance, event.outcome))

    def calls(self) -> list[tuple[str, str]]:
        """Instance and outcome of every call since this was last asked."""
        calls, self._calls = self._calls, []
        return calls


@frozen
class Stage:
    """What the acts share."""

    narrator: Narrator
    folder: Path
    eu: AwsServer
    us: AwsServer
    kms: Kms
    watch: Watch

    def seal(self, name: str, text: str) -> bytes:
        """Write a file, and its sealed form beside it."""
        file = self.folder / name
        file.write_text(text, encoding="utf-8")
        sealed = self.kms.seal(file.read_bytes(), CONTEXT)
        self._sealed(name).write_bytes(sealed)
        return sealed

    def read(self, name: str) -> bytes:
        """The sealed form of a file, as it lies in the folder."""
        return self._sealed(name).read_bytes()

    def opens(self, name: str, text: str) -> bool:
        """Whether the sealed form of a file gives back what was sealed."""
        return self.kms.open(self.read(name), CONTEXT) == text.encode()

    def replace(self, name: str, sealed: bytes) -> None:
        """Put another sealed form in the place of the first."""
        self._sealed(name).write_bytes(sealed)

    def _sealed(self, name: str) -> Path:
        return self.folder / f"{name}.kms"


@click.command()
@click.option("--no-color", is_flag=True, help="Print without colours and styles.")
def demo(*, no_color: bool) -> None:
    """Watch an outage: two key services on this machine, one fails and comes back.

    Needs no account, credentials or configuration; nothing leaves this machine, and nothing is
    left on it.  Takes a few seconds.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        needs = f"the demonstration needs {', '.join(missing)}: pip install 'kms-core[demo]'"
        _stop(ExitCode.USAGE, needs)
    try:
        perform(Narrator(Console(color_system=None if no_color else "auto")))
    except Unexpected as exc:
        _stop(ExitCode.FAILED, f"this did not hold: {exc}; please report it with the output above")
    except BrokenPipeError:
        raise  # whoever read the output has seen enough: not a failure of anything shown
    except (KMSError, OSError) as exc:
        _stop(ExitCode.FAILED, f"the demonstration failed: {exc}")


def _stop(code: ExitCode, message: str) -> NoReturn:
    say(message)
    click.get_current_context().exit(code)


def perform(narrator: Narrator) -> None:
    """All acts in order; raises ``Unexpected`` at the first claim that does not hold."""
    started = time.monotonic()
    threads = set(threading.enumerate())
    with _set_up(narrator) as stage:
        all_is_well(stage)
        one_goes_down(stage)
        the_breaker_opens(stage)
        it_comes_back(stage)
        the_gap_is_repaired(stage)
        only_the_repaired_one_is_left(stage)
    narrator.act("The end")
    narrator.check("the folder with all its files is gone", not stage.folder.exists())
    narrator.check("no server and no thread is left", _ended(threads))
    narrator.say(f"All of this took {_duration(time.monotonic() - started)}.")


@contextmanager
def _set_up(narrator: Narrator) -> Iterator[Stage]:
    """Act one, and the cleaning up after the last."""
    narrator.act("Three key services")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kms-demo-")))
        stack.enter_context(_own_environment())
        eu, us = (stack.enter_context(AwsServer()) for _ in range(2))
        narrator.say(f"AWS KMS in eu-west-1 (moto) runs at {eu.endpoint_url}.")
        narrator.say(f"AWS KMS in us-east-1 (moto) runs at {us.endpoint_url}.")
        configuration = _configure(folder, eu, us)
        narrator.say("The third is a key in a local file.  kms.toml says so:")
        narrator.quote(configuration.read_text(encoding="utf-8"))
        watch = stack.enter_context(_watching())
        kms = stack.enter_context(Kms.from_config(configuration))
        yield Stage(narrator, folder, eu, us, kms, watch)


def _configure(folder: Path, eu: AwsServer, us: AwsServer) -> Path:
    from kms_local import KeyStore

    KeyStore.create(folder / "kms-local.keys")
    configuration = folder / "kms.toml"
    configuration.write_text(
        CONFIGURATION.format(
            eu_key=eu.create_key("eu-west-1"),
            eu_url=eu.endpoint_url,
            us_key=us.create_key("us-east-1"),
            us_url=us.endpoint_url,
        ),
        encoding="utf-8",
    )
    return configuration


def all_is_well(stage: Stage) -> None:
    """Seal to all three, and open."""
    narrator = stage.narrator
    narrator.act("All is well")
    sealed, seconds = _timed(lambda: stage.seal("customers.csv", CUSTOMERS))
    info = stage.kms.inspect(sealed)
    narrator.check(
        "customers.csv is sealed: aws-eu, aws-us and local each hold its data key",
        len(info.recipients) == len(EVERYBODY) and not info.degraded,
        seconds,
    )
    stage.watch.calls()
    opened, seconds = _timed(lambda: stage.opens("customers.csv", CUSTOMERS))
    narrator.check("it opens again, byte for byte", opened, seconds)
    narrator.check(
        "one service was enough for that: aws-eu, which the configuration names first",
        stage.watch.calls() == [("aws-eu", "ok")],
    )


def one_goes_down(stage: Stage) -> None:
    """Reads and writes go on while a service is unreachable."""
    narrator = stage.narrator
    narrator.act("eu-west-1 goes down")
    stage.eu.cut()
    narrator.say("Its line is cut: connections break, new ones are refused.")
    stage.watch.calls()
    opened, seconds = _timed(lambda: stage.opens("customers.csv", CUSTOMERS))
    narrator.check("customers.csv still opens", opened, seconds)
    narrator.check(
        "aws-eu was asked and is unavailable, so aws-us was asked and answered",
        stage.watch.calls() == [("aws-eu", "unavailable"), ("aws-us", "ok")],
    )
    sealed, seconds = _timed(lambda: stage.seal("orders.csv", ORDERS))
    info = stage.kms.inspect(sealed)
    narrator.check("orders.csv is sealed without aws-eu", len(info.recipients) == 2, seconds)
    narrator.check("it says that it is degraded, and whose wrap is missing", info.degraded)
    for recipient in info.recipients:
        narrator.say(f"  holds its data key   {recipient.key_uri}")
    for key_uri in info.missing:
        narrator.say(f"  MISSING              {key_uri}")


def the_breaker_opens(stage: Stage) -> None:
    """After enough failures the dead service is no longer asked."""
    narrator, kms = stage.narrator, stage.kms
    narrator.act("Its circuit breaker opens")
    narrator.say("Sealing goes on; every failure counts.")
    seals = 0
    while kms.breakers["aws-eu"].state != "open" and seals < MAX_SEALS:
        kms.seal(b"more data", CONTEXT)
        seals += 1
    opened = kms.breakers["aws-eu"].state == "open"
    stage.watch.calls()
    _, seconds = _timed(lambda: kms.seal(b"yet more data", CONTEXT))
    asked = {instance for instance, _ in stage.watch.calls()}
    narrator.check(f"{seals} more and the breaker of aws-eu is open", opened)
    narrator.check("the next seal does not even try aws-eu", asked == {"aws-us", "local"}, seconds)
    narrator.breakers(kms)
    health = kms.health()
    narrator.check(f"health is degraded: {health.reason}", health.status == "degraded")


def it_comes_back(stage: Stage) -> None:
    """The breaker finds out by itself, with one probe at a time."""
    narrator, kms = stage.narrator, stage.kms
    narrator.act("eu-west-1 comes back")
    stage.eu.restore()
    narrator.say("The line works again.  Sealing goes on; when the 2 s are over, calls are probes.")
    started = time.monotonic()
    recovered = _eventually(lambda: _seal_and_look(kms))
    narrator.check("two probes succeeded", recovered, time.monotonic() - started)
    narrator.breakers(kms)
    info = kms.inspect(kms.seal(b"data again", CONTEXT))
    narrator.check("what is sealed now is complete", not info.degraded)


def the_gap_is_repaired(stage: Stage) -> None:
    """Add the missing recipient to what was sealed meanwhile."""
    narrator, kms = stage.narrator, stage.kms
    narrator.act("What was sealed meanwhile is repaired")
    degraded = stage.read("orders.csv")
    repaired, seconds = _timed(lambda: kms.rewrap(degraded))
    info = kms.inspect(repaired)
    complete = len(info.recipients) == len(EVERYBODY) and not info.degraded
    narrator.check("rewrap added aws-eu to orders.csv; nobody is missing", complete, seconds)
    body = _body(kms, repaired)
    narrator.check(
        f"the body is the same {len(body)} bytes as before", body == _body(kms, degraded)
    )
    stage.replace("orders-unrepaired.csv", degraded)
    stage.replace("orders.csv", repaired)


def only_the_repaired_one_is_left(stage: Stage) -> None:
    """The service that was down when the file was sealed opens it alone."""
    narrator, kms = stage.narrator, stage.kms
    narrator.act("Now only eu-west-1 is left")
    stage.us.cut()
    store = stage.folder / "kms-local.keys"
    store.rename(store.with_suffix(".away"))
    narrator.say("us-east-1 is cut off, and the local key file is taken away.")
    health = kms.health().instances
    well = [name for name in EVERYBODY if health[name].state == "healthy"]
    narrator.check("aws-eu is the only one that answers", well == ["aws-eu"])
    opened, seconds = _timed(lambda: stage.opens("orders.csv", ORDERS))
    narrator.check("orders.csv opens, though aws-eu was down when it was sealed", opened, seconds)
    narrator.check("a copy that was not repaired does not open now", _is_out_of_reach(stage))


def _seal_and_look(kms: Kms) -> bool:
    kms.seal(b"still more data", CONTEXT)
    return kms.breakers["aws-eu"].state == "closed"


def _is_out_of_reach(stage: Stage) -> bool:
    try:
        stage.kms.open(stage.read("orders-unrepaired.csv"), CONTEXT)
    except AllInstancesFailed:
        return True
    return False


def _body(kms: Kms, sealed: bytes) -> bytes:
    """All that follows the recipients: an envelope's body starts with the name of its data key."""
    return sealed[sealed.rindex(bytes.fromhex(kms.inspect(sealed).key_id)) :]


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide the user's AWS settings from the SDK, which would go by them, and keep it at home."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
    own = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "KMS_DEMO_ACCESS_KEY_ID": "demo",
        "KMS_DEMO_SECRET_ACCESS_KEY": "demo",
    }
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
        os.environ.update(hidden)


@contextmanager
def _watching() -> Iterator[Watch]:
    log = logging.getLogger("kms_core")
    level, watch = log.level, Watch()
    log.addHandler(watch)
    log.setLevel(logging.DEBUG)
    try:
        yield watch
    finally:
        log.setLevel(level)
        log.removeHandler(watch)


def _ended(earlier: set[threading.Thread]) -> bool:
    return _eventually(lambda: set(threading.enumerate()) <= earlier)


def _eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.monotonic()
    result = work()
    return result, time.monotonic() - started


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
