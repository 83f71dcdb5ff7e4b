"""One subject in a process of its own: answers requests for single measurements, line by line.

    python -m benchmarks.runner benchmarks.peers.NAME

A request and its answer are JSON objects on standard input and output.  The subject's environment
needs nothing but the subject and ``cryptography``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from types import ModuleType
from typing import IO, Any, Final

from benchmarks.operations import offers_of
from benchmarks.peer import CRYPTOGRAPHY, Duel, Herd, Variant
from benchmarks.timing import LONG_ENOUGH, Timer, together

Answer = dict[str, Any]


class Runner:
    """Answers requests about one subject, and keeps what it prepared for the next round."""

    def __init__(self, subject: ModuleType) -> None:
        self._subject = subject
        self._variants: Final[dict[str, Variant]] = {
            variant.name: variant for variant in subject.VARIANTS
        }
        self._offers = offers_of(subject)
        self._duels: dict[str, Duel] = {}
        self._timers: dict[str, Timer] = {}
        self._answers: Mapping[str, Callable[[Mapping[str, Any]], Answer]] = {
            "hello": self._hello,
            "time": self._time,
            "herd": self._herd,
            "forget": self._forget,
        }

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """The answer; ``error`` in it if the subject, or this program, failed."""
        try:
            return self._answers[request["do"]](request)
        except Exception as exc:  # noqa: BLE001  one case breaks, the others are measured
            traceback.print_exc()
            return {"error": f"{type(exc).__name__}: {exc}"}

    def _hello(self, _: Mapping[str, Any]) -> Answer:
        """Who this is, in which versions, and what can be measured."""
        offers = {operation: list(makers) for operation, makers in self._offers.items()}
        for variant in self._variants.values():
            for crowd in variant.herd or ():
                offers.setdefault(f"herd {crowd}", []).append(variant.name)
        return {
            "versions": _versions([*self._subject.REQUIREMENTS, CRYPTOGRAPHY]),
            "variants": {
                variant.name: {"what": variant.what, "envelope": variant.envelope}
                for variant in self._variants.values()
            },
            "offers": offers,
        }

    def _time(self, request: Mapping[str, Any]) -> Answer:
        """Samples of a duel, in nanoseconds per unit."""
        threads, first = request.get("threads", 1), request.get("first", 0)
        timer = self._timer(request, threads)
        gc.collect()  # the collector is off while calls are timed
        pairs = [
            timer.sample(subject_first=bool((turn + first) % 2))
            for turn in range(request.get("samples", 1))
        ]
        return {"base": [base for base, _ in pairs], "subject": [subject for _, subject in pairs]}

    def _timer(self, request: Mapping[str, Any], threads: int) -> Timer:
        what = {name: request[name] for name in ("operation", "offer", "given")}
        key = json.dumps(what, sort_keys=True)
        if key not in self._duels:
            make = self._offers[request["operation"]][request["offer"]]
            self._duels[key] = make(request["given"])
        crowd = f"{threads} {key}"
        if crowd not in self._timers:
            at_least = request.get("at_least", LONG_ENOUGH)
            self._timers[crowd] = Timer(self._duels[key], threads, at_least)
        return self._timers[crowd]

    def _herd(self, request: Mapping[str, Any]) -> Answer:
        """Threads that all want one uncached key: seconds for all of them, and requests made."""
        crowds = self._variants[request["offer"]].herd or {}
        herd: Herd = crowds[request["crowd"]](request["delay"])
        asked = herd.asked()
        began, ended = together(herd.call, request["threads"])
        return {"seconds": (ended - began) / 1e9, "asked": herd.asked() - asked}

    def _forget(self, _: Mapping[str, Any]) -> Answer:
        """Let go of everything prepared: streams take a lot of memory."""
        self._duels.clear()
        self._timers.clear()
        gc.collect()
        return {}


def _versions(requirements: Iterable[str]) -> dict[str, str]:
    names = [requirement.partition("==")[0] for requirement in requirements]
    return {name: metadata.version(name.partition("[")[0]) for name in names}


def serve(runner: Runner, requests: Iterable[str], answers: IO[str]) -> None:
    """Answer until there are no more requests."""
    for line in requests:
        answers.write(json.dumps(runner.answer(json.loads(line))) + "\n")
        answers.flush()


def main() -> None:
    """Whatever a library prints must not get among the answers: it goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    gc.disable()
    runner = Runner(importlib.import_module(sys.argv[1]))
    gc.freeze()  # an SDK's modules need not be looked through between samples
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(runner, sys.stdin, answers)


if __name__ == "__main__":
    main()
