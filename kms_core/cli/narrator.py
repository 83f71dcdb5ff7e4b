"""How the demonstration tells what happens, and how it finds out about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from kms_core.client import Kms

T = TypeVar("T")


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
        self._print(f"  ok {claim}" + ("" if seconds is None else f"  ({duration(seconds)})"))

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
                duration(breaker.retry_after) if breaker.retry_after else "-",
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


@contextmanager
def watching() -> Iterator[Watch]:
    """A watch on all calls until the block ends; logging is as before then."""
    log = logging.getLogger("kms_core")
    level, watch = log.level, Watch()
    log.addHandler(watch)
    log.setLevel(logging.DEBUG)
    try:
        yield watch
    finally:
        log.setLevel(level)
        log.removeHandler(watch)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` returns, and how many seconds it took."""
    started = time.monotonic()
    result = work()
    return result, time.monotonic() - started


def eventually(holds: Callable[[], bool], patience: float) -> bool:
    """Whether it holds within so many seconds."""
    deadline = time.monotonic() + patience
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def duration(seconds: float) -> str:
    """For people: ``12 ms``, ``2.1 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def listed(names: list[str]) -> str:
    """For people: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
