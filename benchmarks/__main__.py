"""The command: ``python -m benchmarks``; ``nox -s bench`` runs it where everything is installed.

Exits with 1 if a case broke, and with 0 however slow anything is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import plan, report, startup
from benchmarks.bench import Bench, Options
from benchmarks.environments import find_peers
from benchmarks.remote import ROOT

FOLDER: Final = ROOT / "build" / "bench"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, fewer rounds")
    parser.add_argument("--list", action="store_true", help="show what there is, measure nothing")
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="a regular expression: suite/case/subject"
    )
    parser.add_argument(
        "--json", type=Path, default=FOLDER / "results.json", metavar="PATH", help="where to"
    )
    return parser.parse_args(arguments)


def listed() -> str:
    """Suites, cases and peers; nothing has to be installed for that."""
    suites = [
        make(quick=False)
        for make in (plan.cached, plan.layers, plan.many, plan.streams, plan.threads)
    ]
    suites += [plan.files("", synced=synced, quick=False) for synced in (False, True)]
    suites += [plan.cold([], delay, quick=False) for delay in plan.DELAYS]
    cases = [f"{suite.name}/{case.name}" for suite in suites for case in suite.cases]
    cases += [f"herd/{crowd}, {plan.HERD} threads" for crowd in plan.CROWDS]
    peers = [f"{peer.name}: {', '.join(peer.all_requirements)}" for peer in find_peers()]
    return "\n".join([*cases, startup.SUITE, "", *peers])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and write the files."""
    options = parse(arguments)
    if options.list:
        print(listed())
        return 0
    began = time.monotonic()
    bench = Bench(Options(FOLDER, quick=options.quick, only=options.only))
    bench.run()
    print(report.write(bench, time.monotonic() - began, options.json))
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
