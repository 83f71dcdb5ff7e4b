"""A run: starts the subjects, puts them to every case in turn, and collects the rows."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

from attrs import Factory, define, field, frozen

from benchmarks import plan, startup
from benchmarks.environments import NotInstalled, find_peers, python_of
from benchmarks.plan import Case, Suite
from benchmarks.remote import Remote, SubjectFailed
from benchmarks.results import Results, Row, Spread, row_of
from benchmarks.service import ServiceProcess

OURS: Final = "benchmarks.ours"
T = TypeVar("T")


def load_now() -> float | None:
    """The load average of the last minute, where there is such a thing."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


@frozen
class Subject:
    """Who takes part, with what it is made of, or why it does not."""

    name: str
    versions: dict[str, str] = Factory(dict)
    variants: dict[str, Any] = Factory(dict)
    missing: str = ""


@frozen
class Options:
    """How to run.  ``only`` is searched for in ``suite/case/subject``."""

    folder: Path
    quick: bool = False
    only: str = ""
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def wants(self, name: str) -> bool:
        """Whether this is to be measured."""
        return re.search(self.only, name, re.IGNORECASE) is not None


@define(eq=False)
class _Turn:
    """One case for one subject, and the samples so far."""

    case: Case
    remote: Remote
    offer: str
    samples: list[tuple[float, float]] = field(factory=list)
    broken: bool = False

    def take(self, number: int) -> None:
        """The samples of one more round; raises ``SubjectFailed``."""
        answer = self.remote.ask(**self.case.request, offer=self.offer, first=number)
        self.samples.extend(zip(answer["base"], answer["subject"], strict=True))

    @property
    def row(self) -> Row:
        """What they come to."""
        case = self.case
        named = (case.suite, case.name, self.offer)
        return row_of(named, self.samples, factor=case.factor, unit=case.unit, base=case.base)


@define(eq=False)
class Bench:
    """One run and what came out of it; ``failures`` are cases that broke."""

    options: Options
    results: Results = field(factory=Results)
    subjects: list[Subject] = field(factory=list)
    failures: list[str] = field(factory=list)
    #: How busy the machine was before the run kept it busy.
    load: float | None = field(factory=load_now)
    _remotes: list[Remote] = field(factory=list)
    _pythons: dict[str, tuple[str, str]] = field(factory=dict)

    def run(self) -> None:
        """Everything that is wanted."""
        options = self.options
        logs = options.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._start(stack, logs)
            for make in (plan.cached, plan.layers, plan.many, plan.streams, plan.threads):
                self.measure(make(quick=options.quick))
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                for synced in (False,) if options.quick else (False, True):
                    self.measure(plan.files(folder, synced=synced, quick=options.quick))
            self._measure_herds()
            self._measure_cold()
        self._measure_starts()

    # --- who takes part --------------------------------------------------------------------------

    def _start(self, stack: ExitStack, logs: Path) -> None:
        self._add(stack, OURS, "kms_core", Path(sys.executable), logs)
        for peer in find_peers():
            try:
                self.options.say(f"preparing {', '.join(peer.requirements)}")
                python = python_of(peer, self.options.folder / "venvs")
            except NotInstalled as exc:
                self.subjects.append(Subject(peer.name, missing=f"not installable here: {exc}"))
                continue
            self._pythons[peer.name] = (str(python), peer.statement)
            self._add(stack, peer.module, peer.name, python, logs)

    def _add(self, stack: ExitStack, module: str, name: str, python: Path, logs: Path) -> None:
        try:
            remote = stack.enter_context(Remote(module, python, logs / f"{name}.log"))
        except SubjectFailed as exc:
            self.failed(str(exc))
            self.subjects.append(Subject(name, missing=str(exc)))
            return
        said = remote.introduction
        self._remotes.append(remote)
        self.subjects.append(Subject(name, dict(said.versions), dict(said.variants)))

    def _offering(self, suite: str, case: str, operation: str) -> list[tuple[Remote, str]]:
        return [
            (remote, offer)
            for remote in self._remotes
            for offer in remote.introduction.offers.get(operation, ())
            if self.options.wants(f"{suite}/{case}/{offer}")
        ]

    # --- measuring -------------------------------------------------------------------------------

    def measure(self, suite: Suite) -> None:
        """Round by round, everybody in turn, in another order every time."""
        turns = [
            _Turn(case, remote, offer)
            for case in suite.cases
            for remote, offer in self._offering(suite.name, case.name, case.operation)
        ]
        if turns:
            self.options.say(f"{suite.name}: {len(turns)} measurements, {suite.rounds} rounds")
        for number in range(suite.rounds):
            for turn in rotated(turns, number):
                self._take(turn, number)
        for turn in turns:
            if not turn.broken:
                self.results.add(turn.row)
        self._forget()

    def _take(self, turn: _Turn, number: int) -> None:
        if turn.broken:
            return
        try:
            turn.take(number)
        except SubjectFailed as exc:
            turn.broken = True
            self.failed(f"{turn.case.suite}/{turn.case.name}/{turn.offer}: {exc}")

    def _forget(self) -> None:
        for remote in list(self._remotes):
            try:
                remote.ask(do="forget")
            except SubjectFailed as exc:
                self._remotes.remove(remote)
                self.failed(str(exc))

    def _measure_herds(self) -> None:
        """Threads that all want a key at once: how long it takes them, and who was asked."""
        for crowd in plan.CROWDS:
            case = f"{crowd}, {plan.HERD} threads"
            everybody = self._offering("herd", case, f"herd {crowd}")
            taken: dict[str, list[tuple[float, float]]] = {}
            for number in range(3):
                for remote, offer in rotated(everybody, number):
                    try:
                        answer = remote.ask(
                            do="herd",
                            crowd=crowd,
                            offer=offer,
                            threads=plan.HERD,
                            delay=plan.HERD_DELAY,
                        )
                    except SubjectFailed as exc:
                        self.failed(f"herd/{case}/{offer}: {exc}")
                    else:
                        taken.setdefault(offer, []).append((answer["seconds"], answer["asked"]))
            for offer, pairs in taken.items():
                seconds, asked = zip(*pairs, strict=True)
                self.results.add(Row("herd", case, offer, Spread.of(seconds).times(1e3), "ms"))
                self.results.add(
                    Row("herd", f"{case}, requests", offer, Spread.of(asked), "requests")
                )

    def _measure_cold(self) -> None:
        quick = self.options.quick
        delays = plan.DELAYS[:2] if quick else plan.DELAYS
        cases = [case for delay in delays for case in plan.cold([], delay, quick=quick).cases]
        if not any(self._offering(case.suite, case.name, case.operation) for case in cases):
            return
        with ServiceProcess.start() as server:
            for delay in delays:
                server.take(delay)
                self.measure(plan.cold(server.services, delay, quick=quick))

    def _measure_starts(self) -> None:
        with startup.programs(self._pythons, self.options.wants) as programs:
            self.options.say(f"{startup.SUITE}: {len(programs)} programs")
            startup.run(programs, 3 if self.options.quick else 7, self.results, self.failed)

    def failed(self, what: str) -> None:
        """A case broke; the others go on."""
        self.failures.append(what)
        self.options.say(f"failed: {what}")


def rotated(items: Sequence[T], by: int) -> Iterator[T]:
    """All of them, starting further along every time."""
    start = by % len(items) if items else 0
    yield from items[start:]
    yield from items[:start]
