"""``kms demo``: an outage from beginning to end, on real servers, in a few seconds.

Key services of every kind run on this machine for as long as it takes.  The first goes down and
comes back, others fail in ways of their own, in the end they go one after the other; everything
that the library promises about that is done and checked.  Nothing leaves the machine and nothing
stays behind.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NoReturn

import click
from attrs import frozen
from rich.console import Console

from kms_core.cli.exits import ExitCode, say
from kms_core.cli.keepers import INSTALL, LOCAL, Keeper, own_environment, start_all
from kms_core.cli.narrator import (
    Narrator,
    Unexpected,
    Watch,
    duration,
    eventually,
    listed,
    timed,
    watching,
)
from kms_core.client import Kms
from kms_core.errors import AllInstancesFailed, KMSError

CONTEXT: Final = {"tenant": "42"}
CUSTOMERS: Final = "id,name,city\n1,Ada,London\n2,Grace,New York\n3,Emmy,Erlangen\n"
ORDERS: Final = "id,customer,total\n1,3,99.00\n2,1,12.50\n"
INVOICES: Final = "id,order\n1,1\n2,2\n"
PATIENCE: Final = 15.0  # seconds for what takes two or three
MAX_SEALS: Final = 10  # the breaker needs one or two
MIN_SERVICES: Final = 2  # besides the local one, which alone is no substitute for a service

POLICIES: Final = """\
[breaker]
failure_threshold = 5        # as it is unless set
recovery_timeout = "2s"      # 60 s unless set: nobody wants to watch that

[envelope]
straggler_wait = "5s"        # 0.5 s unless set: this machine may be busy

[calls]
hedge_after = "5s"           # 1 s unless set, likewise
health_timeout = "5s"        # 2 s unless set, likewise

[cache]
max_age = 0                  # 5 minutes unless set: with data keys at hand no outage would show
"""


class TooFewServices(Exception):
    """There is nobody to fail over to."""


@frozen
class Stage:
    """What the acts share."""

    narrator: Narrator
    folder: Path
    keepers: tuple[Keeper, ...]
    kms: Kms
    watch: Watch

    @property
    def first(self) -> Keeper:
        """The one that the configuration names first; it is asked first."""
        return self.keepers[0]

    @property
    def names(self) -> list[str]:
        """Everybody."""
        return [keeper.name for keeper in self.keepers]

    def seal(self, name: str, text: str) -> bytes:
        """Write a file, and its sealed form beside it."""
        file = self.folder / name
        file.write_text(text, encoding="utf-8")
        sealed = self.kms.seal(file.read_bytes(), CONTEXT)
        self.replace(name, sealed)
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

    def is_complete(self, sealed: bytes) -> bool:
        """Whether everybody holds its data key."""
        info = self.kms.inspect(sealed)
        return len(info.recipients) == len(self.keepers) and not info.degraded

    def _sealed(self, name: str) -> Path:
        return self.folder / f"{name}.kms"


@click.command()
@click.option("--no-color", is_flag=True, help="Print without colours and styles.")
def demo(*, no_color: bool) -> None:
    """Watch an outage: key services on this machine fail, and some come back.

    Needs no account, credentials or configuration; nothing leaves this machine, and nothing is
    left on it.  Takes a few seconds.
    """
    try:
        perform(Narrator(Console(color_system=None if no_color else "auto")))
    except TooFewServices:
        _stop(ExitCode.USAGE, f"the demonstration needs more services than these: {INSTALL}")
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
        the_first_goes_down(stage)
        its_breaker_opens(stage)
        it_comes_back(stage)
        others_misbehave(stage)
        the_gaps_are_repaired(stage)
        one_after_the_other_goes(stage)
        only_the_first_is_left(stage)
    narrator.act("The end")
    narrator.check("the folder with all its files is gone", not stage.folder.exists())
    narrator.check("no server and no thread is left", _ended(threads))
    narrator.say(f"All of this took {duration(time.monotonic() - started)}.")


@contextmanager
def _set_up(narrator: Narrator) -> Iterator[Stage]:
    """Act one, and the cleaning up after the last."""
    narrator.act("The key services")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kms-demo-")))
        stack.enter_context(own_environment())
        keepers = _introduce(narrator, stack, folder)
        configuration = _configure(folder, keepers)
        narrator.say("kms.toml says so:")
        narrator.quote(configuration.read_text(encoding="utf-8"))
        watch = stack.enter_context(watching())
        kms = stack.enter_context(Kms.from_config(configuration))
        yield Stage(narrator, folder, keepers, kms, watch)


def _introduce(narrator: Narrator, stack: ExitStack, folder: Path) -> tuple[Keeper, ...]:
    keepers = start_all(
        stack, folder, lambda name, why: narrator.say(f"{name} is left out: {why}.")
    )
    if len([keeper for keeper in keepers if keeper.name != LOCAL]) < MIN_SERVICES:
        raise TooFewServices
    for keeper in keepers:
        narrator.say(keeper.introduction)
    return keepers


def _configure(folder: Path, keepers: Sequence[Keeper]) -> Path:
    configuration = folder / "kms.toml"
    tables = [*(keeper.table for keeper in keepers), POLICIES]
    configuration.write_text("\n".join(tables), encoding="utf-8")
    return configuration


def all_is_well(stage: Stage) -> None:
    """Seal to everybody, and open."""
    narrator, first = stage.narrator, stage.first.name
    narrator.act("All is well")
    sealed, seconds = timed(lambda: stage.seal("customers.csv", CUSTOMERS))
    claim = f"customers.csv is sealed: {listed(stage.names)} each hold its data key"
    narrator.check(claim, stage.is_complete(sealed), seconds)
    stage.watch.calls()
    opened, seconds = timed(lambda: stage.opens("customers.csv", CUSTOMERS))
    narrator.check("it opens again, byte for byte", opened, seconds)
    narrator.check(
        f"one service was enough for that: {first}, which the configuration names first",
        stage.watch.calls() == [(first, "ok")],
    )


def the_first_goes_down(stage: Stage) -> None:
    """Reads and writes go on while a service is unreachable."""
    narrator, first, second = stage.narrator, *stage.names[:2]
    narrator.act(f"{first} goes down")
    stage.first.lose()
    narrator.say("Its line is cut: connections break, new ones are refused.")
    stage.watch.calls()
    opened, seconds = timed(lambda: stage.opens("customers.csv", CUSTOMERS))
    narrator.check("customers.csv still opens", opened, seconds)
    narrator.check(
        f"{first} was asked and is unavailable, so {second} was asked and answered",
        stage.watch.calls() == [(first, "unavailable"), (second, "ok")],
    )
    sealed, seconds = timed(lambda: stage.seal("orders.csv", ORDERS))
    info = stage.kms.inspect(sealed)
    everybody_else = len(info.recipients) == len(stage.keepers) - 1
    narrator.check(f"orders.csv is sealed without {first}", everybody_else, seconds)
    narrator.check("it says that it is degraded, and whose wrap is missing", info.degraded)
    for recipient in info.recipients:
        narrator.say(f"  holds its data key   {recipient.key_uri}")
    for key_uri in info.missing:
        narrator.say(f"  MISSING              {key_uri}")


def its_breaker_opens(stage: Stage) -> None:
    """After enough failures the dead service is no longer asked."""
    narrator, kms, first = stage.narrator, stage.kms, stage.first.name
    narrator.act("Its circuit breaker opens")
    narrator.say("Sealing goes on; every failure counts.")
    seals = 0
    while kms.breakers[first].state != "open" and seals < MAX_SEALS:
        kms.seal(b"more data", CONTEXT)
        seals += 1
    opened = kms.breakers[first].state == "open"
    stage.watch.calls()
    _, seconds = timed(lambda: kms.seal(b"yet more data", CONTEXT))
    asked = {instance for instance, _ in stage.watch.calls()}
    narrator.check(f"{seals} more and the breaker of {first} is open", opened)
    others = set(stage.names[1:])
    narrator.check(f"the next seal does not even try {first}", asked == others, seconds)
    narrator.breakers(kms)
    health = kms.health()
    narrator.check(f"health is degraded: {health.reason}", health.status == "degraded")


def it_comes_back(stage: Stage) -> None:
    """The breaker finds out by itself, with one probe at a time."""
    narrator, kms = stage.narrator, stage.kms
    narrator.act(f"{stage.first.name} comes back")
    stage.first.restore()
    narrator.say("The line works again.  Sealing goes on; when the 2 s are over, calls are probes.")
    started = time.monotonic()
    recovered = eventually(lambda: _seal_and_look(stage), PATIENCE)
    narrator.check("two probes succeeded", recovered, time.monotonic() - started)
    narrator.breakers(kms)
    sealed = kms.seal(b"data again", CONTEXT)
    narrator.check("what is sealed now is complete", stage.is_complete(sealed))


def others_misbehave(stage: Stage) -> None:
    """Services that answer badly are no worse than one that does not answer."""
    narrator = stage.narrator
    narrator.act("Others fail in ways of their own")
    troubles = {keeper.name: keeper.trouble for keeper in stage.keepers[1:] if keeper.trouble}
    for trouble in troubles.values():
        trouble.begin()
        narrator.say(trouble.told)
    stage.watch.calls()
    sealed, seconds = timed(lambda: stage.seal("invoices.csv", INVOICES))
    outcomes = dict(stage.watch.calls())
    missing = len(stage.kms.inspect(sealed).missing)
    claim = f"invoices.csv is sealed without {listed(list(troubles))}, and says so"
    narrator.check(claim, missing == len(troubles), seconds)
    for name, trouble in troubles.items():
        told = outcomes.get(name)
        narrator.check(f"to its callers {name} is {trouble.outcome}", told == trouble.outcome)
    opened, seconds = timed(lambda: stage.opens("invoices.csv", INVOICES))
    narrator.check("it opens", opened, seconds)
    for trouble in troubles.values():
        trouble.end()
    narrator.say("All are well again; whoever throttled is not asked first for another second.")


def the_gaps_are_repaired(stage: Stage) -> None:
    """Add the missing recipients to what was sealed meanwhile."""
    stage.narrator.act("What was sealed meanwhile is repaired")
    stage.replace("orders-unrepaired.csv", stage.read("orders.csv"))
    for name in ("orders.csv", "invoices.csv"):
        _repair(stage, name)


def _repair(stage: Stage, name: str) -> None:
    narrator, kms = stage.narrator, stage.kms
    before = stage.read(name)
    after, seconds = timed(lambda: kms.rewrap(before))
    complete = stage.is_complete(after)
    narrator.check(f"rewrap added whoever was missing to {name}", complete, seconds)
    body = _body(kms, after)
    narrator.check(f"its body is the same {len(body)} bytes as before", body == _body(kms, before))
    stage.replace(name, after)


def one_after_the_other_goes(stage: Stage) -> None:
    """What everybody holds opens until the last is gone."""
    narrator = stage.narrator
    narrator.act("One after the other goes")
    for gone, keeper in enumerate(stage.keepers[:-1], start=1):
        keeper.lose()
        stage.watch.calls()
        opened, seconds = timed(lambda: stage.opens("customers.csv", CUSTOMERS))
        answered = [name for name, outcome in stage.watch.calls() if outcome == "ok"]
        claim = f"{keeper.name} is gone: customers.csv opens through {listed(answered)}"
        narrator.check(claim, opened and set(answered) <= set(stage.names[gone:]), seconds)


def only_the_first_is_left(stage: Stage) -> None:
    """The service that was down when the file was sealed opens it alone."""
    narrator, kms, first = stage.narrator, stage.kms, stage.first.name
    narrator.act(f"Now only {first} is left")
    stage.first.restore()
    stage.keepers[-1].lose()
    narrator.say(f"{first} comes back, and {stage.names[-1]} goes too.")
    health = kms.health().instances
    well = [name for name in stage.names if health[name].state == "healthy"]
    narrator.check(f"{first} is the only one that answers", well == [first])
    opened, seconds = timed(lambda: stage.opens("orders.csv", ORDERS))
    narrator.check(f"orders.csv opens, though {first} was down when it was sealed", opened, seconds)
    narrator.check("a copy that was not repaired does not open now", _is_out_of_reach(stage))


def _seal_and_look(stage: Stage) -> bool:
    stage.kms.seal(b"still more data", CONTEXT)
    return stage.kms.breakers[stage.first.name].state == "closed"


def _is_out_of_reach(stage: Stage) -> bool:
    try:
        stage.kms.open(stage.read("orders-unrepaired.csv"), CONTEXT)
    except AllInstancesFailed:
        return True
    return False


def _body(kms: Kms, sealed: bytes) -> bytes:
    """All that follows the recipients: an envelope's body starts with the name of its data key."""
    return sealed[sealed.rindex(bytes.fromhex(kms.inspect(sealed).key_id)) :]


def _ended(earlier: set[threading.Thread]) -> bool:
    return eventually(lambda: set(threading.enumerate()) <= earlier, PATIENCE)
