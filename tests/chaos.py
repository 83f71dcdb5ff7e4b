"""Outages at random, and what they explain.

What happens is planned from a seed alone.  The world remembers since when each service has been
well, so that a call that fails can be judged: with a service at hand that had been well for long
enough, it ought not to have failed.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from attrs import frozen

from tests.fenced import Service

SETTLED: Final = 3.0  # seconds after which a client must have noticed that a service is back
PAUSE: Final = (0.3, 3.0)  # seconds from one trouble to the next
TROUBLE: Final = (0.5, 4.0)  # seconds that one lasts
BLACKOUT: Final = 1.5  # seconds
OF_BLACKOUTS: Final = 0.1  # of all troubles, where there are any
#: The line is broken, in half of all cases; in the others the service answers badly.
OUTAGES: Final = ("cut", "hang")
LOCAL: Final = "local"


@frozen
class Action:
    """Something to do to a service, ``at`` seconds after the start."""

    at: float
    service: str
    action: str

    def __str__(self) -> str:
        return f"{self.at:8.2f} s  {self.service:<8} {self.action}"


def plan(
    actions: Mapping[str, Sequence[str]], seed: int, *, blackouts: bool = False
) -> Iterator[Action]:
    """Without end: who gets into which trouble when, and is restored when; in order of time.

    At any moment somebody is well, and not the local store alone.  With ``blackouts``, now and then
    everybody is cut off at once.
    """
    rng = random.Random(seed)  # noqa: S311  reproducible
    now, until = 0.0, dict[str, float]()
    while True:
        now += rng.uniform(*PAUSE)
        for name in sorted((name for name in until if until[name] <= now), key=until.__getitem__):
            yield Action(until.pop(name), name, "restore")
        if blackouts and rng.random() < OF_BLACKOUTS:
            for name in [name for name in actions if name not in until]:
                yield Action(now, name, "cut")
            until = {name: max(until.get(name, 0.0), now + BLACKOUT) for name in actions}
            continue
        name = rng.choice(list(actions))
        if name not in until and actions.keys() - until.keys() - {name, LOCAL}:
            yield Action(now, name, _draw(rng, actions[name]))
            until[name] = now + rng.uniform(*TROUBLE)


def _draw(rng: random.Random, actions: Sequence[str]) -> str:
    outages = [action for action in actions if action in OUTAGES]
    others = [action for action in actions if action not in OUTAGES]
    return rng.choice(outages if not others or rng.random() < 0.5 else others)


class World:
    """The services as they are.  Thread-safe."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._well_since: dict[str, float | None] = dict.fromkeys(services, self._began)
        #: What was done, and when it was done in fact.
        self.schedule: list[Action] = []

    def apply(self, name: str, action: str) -> None:
        """From before a trouble begins until after it is over, the service counts as unwell."""
        with self._lock:
            self._well_since[name] = None
        self.schedule.append(Action(time.monotonic() - self._began, name, action))
        self._services[name].do(action)
        if action == "restore":
            with self._lock:
                self._well_since[name] = time.monotonic()

    def restore_all(self) -> None:
        """Everybody is well again."""
        with self._lock:
            unwell = [name for name, since in self._well_since.items() if since is None]
        for name in unwell:
            self.apply(name, "restore")

    def settled(self, began: float, names: Iterable[str]) -> list[str]:
        """Which of these have been well from ``SETTLED`` before ``began`` until now."""
        with self._lock:
            since = {name: self._well_since[name] for name in names}
        return [
            name for name, well in since.items() if well is not None and well <= began - SETTLED
        ]

    def counts(self) -> Counter[str]:
        """How often each action was taken."""
        return Counter(taken.action for taken in self.schedule)


class Chaos:
    """Carries a plan out from ``start`` to ``stop``, on a thread of its own."""

    def __init__(self, world: World, actions: Iterable[Action]) -> None:
        self._world = world
        self._actions = actions
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, with everybody well; raises what went wrong meanwhile, if anything did."""
        self._stopping.set()
        self._thread.join()
        self._world.restore_all()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        began = time.monotonic()
        try:
            for action in self._actions:
                if self._stopping.wait(max(0.0, began + action.at - time.monotonic())):
                    return
                self._world.apply(action.service, action.action)
        except BaseException as exc:  # noqa: BLE001  raised by ``stop``
            self._error = exc
