"""Fuzzing by hand: ``python -m tests.fuzz.run [TARGET...] --seconds 60`` in the project's root.

Prints a line for each target, and fails if there was a fault; its input is then in build/fuzz.
What was found becomes a file in tests/fuzz/corpus, named for what was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.fuzz.hunt import Fault, Report, attempt, hunt, mutations
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import CORPUS, TARGETS, Target

FOUND: Final = Path("build", "fuzz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Each target in turn; the number of those with faults."""
    options = _parser().parse_args(arguments)
    engine = _with_atheris if options.engine == "atheris" else _by_ourselves
    targets = options.targets or list(TARGETS.values())
    return sum(engine(target, options.seconds, options.seed) for target in targets)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description=(__doc__ or "").strip())
    parser.add_argument("targets", nargs="*", metavar="TARGET", type=_target, help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument(
        "--engine",
        choices=("builtin", "atheris"),
        default="builtin",
        help="atheris, if it is installed, looks for inputs that reach new code; one target",
    )
    return parser


def _target(name: str) -> Target:
    if name not in TARGETS:
        raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(TARGETS)}")
    return TARGETS[name]


def _by_ourselves(target: Target, seconds: float, seed: int) -> bool:
    end = time.monotonic() + seconds
    report = hunt(target, mutations(target, seed), enough=lambda: time.monotonic() > end)
    _print(target, report, seed)
    for fault in report.faults.values():
        _keep(target, fault)
    return bool(report.faults)


def _print(target: Target, report: Report, seed: int) -> None:
    outcomes = ", ".join(f"{name} {count}" for name, count in report.outcomes.most_common())
    sys.stdout.write(
        f"{target.name}: {report.tried} inputs from seed {seed} ({outcomes}); slowest "
        f"{report.slowest * 1000:.1f} ms with {len(report.slowest_input)} bytes; "
        f"{report.memory / (1 << 20):.2f} MiB; {len(report.faults)} faults\n"
    )
    sys.stdout.flush()


def _keep(target: Target, fault: Fault) -> None:
    FOUND.mkdir(parents=True, exist_ok=True)
    file = FOUND / f"{target.name}-{hashlib.sha256(fault.data).hexdigest()[:12]}"
    file.write_bytes(fault.data)
    sys.stdout.write(f"  {file}: {fault.reason}\n")


def _with_atheris(target: Target, seconds: float, seed: int) -> bool:
    """Hand over to libFuzzer, which ends the process itself."""
    atheris: Any = importlib.import_module("atheris")
    grammar, seeds = target.grammar, list(target.seeds().values())

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        return Mutator([*seeds, data], grammar, number).mutate(data)[:max_size]

    def judge(data: bytes) -> None:
        outcome = attempt(target, data)
        if isinstance(outcome, Fault):
            _keep(target, outcome)
            raise RuntimeError(outcome.reason)  # noqa: TRY004  # no type is wrong here

    FOUND.mkdir(parents=True, exist_ok=True)
    flags = [f"-max_total_time={seconds:.0f}", f"-seed={seed}", f"-max_len={grammar.limit}"]
    folders = [str(CORPUS / folder) for folder in target.folders]
    scratch = FOUND / f"{target.name}-corpus"  # libFuzzer writes what it learns into the first one
    scratch.mkdir(exist_ok=True)
    atheris.instrument_all()
    atheris.Setup([target.name, *flags, str(scratch), *folders], judge, custom_mutator=mutate)
    atheris.Fuzz()
    return False


if __name__ == "__main__":
    sys.exit(main())
