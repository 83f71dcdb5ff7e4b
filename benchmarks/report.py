"""What a run leaves behind: JSON for programs, Markdown for people, a chart for a glance."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from attrs import asdict

from benchmarks.bench import Bench, Subject
from benchmarks.chart import Bar, Panel, drawn
from benchmarks.limits import Peer, Verdict, verdicts
from benchmarks.results import Results, Row, Spread, figure

_OURS: Final = "kms_core"
_CHARTED: Final = {"seal, 1 KiB": "Sealing 1 KiB", "open, 1 KiB": "Opening 1 KiB"}
_QUIET: Final = 0.5  # load average up to which nothing else was going on
_WORDS: Final = {True: "yes", False: "**no**", None: "-"}


def write(bench: Bench, seconds: float, json_path: Path) -> str:
    """Write all three; the Markdown is also the answer."""
    judged = verdicts(bench.results, peers_of(bench.subjects))
    told = environment(seconds, bench.load)
    folder = bench.options.folder
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(as_json(bench, judged, told), indent=1) + "\n")
    text = markdown(bench, judged, told)
    (folder / "results.md").write_text(text)
    (folder / "chart.svg").write_text(chart(bench.results))
    return text


def peers_of(subjects: Sequence[Subject]) -> list[Peer]:
    """The variants of everybody else."""
    return [
        Peer(name, variant["envelope"])
        for subject in subjects
        if subject.name != _OURS
        for name, variant in subject.variants.items()
    ]


def environment(seconds: float, load: float | None) -> dict[str, Any]:
    """The machine, and how busy it was before the run began."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": load,
    }


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def as_json(bench: Bench, judged: Sequence[Verdict], told: dict[str, Any]) -> dict[str, Any]:
    """Everything."""
    return {
        "environment": told,
        "subjects": [asdict(subject) for subject in bench.subjects],
        "limits": [{**asdict(verdict), "met": verdict.met} for verdict in judged],
        "rows": bench.results.as_json(),
        "failures": bench.failures,
    }


def markdown(bench: Bench, judged: Sequence[Verdict], told: dict[str, Any]) -> str:
    """Limits first, then every suite, then who took part."""
    lines = ["# Benchmark results", "", ", ".join(f"{k} {v}" for k, v in told.items()), ""]
    if told["load"] is not None and told["load"] > _QUIET:
        lines += ["**The machine was busy with something else: trust no figure of this run.**", ""]
    if bench.failures:
        lines += ["## Broken", "", *(f"- {failure}" for failure in bench.failures), ""]
    lines += ["## Limits", "", *limits_table(judged), ""]
    for suite, rows in groupby(bench.results, key=lambda row: row.suite):
        lines += [f"## {suite}", "", *_suite_table(list(rows)), ""]
    lines += ["## Who took part", "", *_subjects_table(bench.subjects), ""]
    return "\n".join(lines)


def limits_table(judged: Sequence[Verdict]) -> Iterator[str]:
    """One row for each limit."""
    yield "| what | measured | limit | met |\n| --- | ---: | ---: | --- |"
    for verdict in judged:
        measured = "not measured" if verdict.measured is None else figure(verdict.measured)
        sign = "≤" if verdict.at_most else "≥"
        unit = f" {verdict.unit}".rstrip()
        note = f" ({verdict.note})" if verdict.note else ""
        yield (
            f"| {verdict.name}{note} | {measured}{unit if verdict.measured is not None else ''} "
            f"| {sign} {verdict.limit:g}{unit} | {_WORDS[verdict.met]} |"
        )


def _suite_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| case | subject | median | p10 to p90 | time / base | p10 to p90 | base |"
    yield "| --- | --- | ---: | --- | ---: | --- | --- |"
    for row in rows:
        value, spread = figure(row.value.median), _between(row.value)
        ratio = f"{row.ratio.median:.2f}" if row.ratio else ""
        ratios = f"{row.ratio.low:.2f} to {row.ratio.high:.2f}" if row.ratio else ""
        yield (
            f"| {row.case} | {row.subject} | {value} {row.unit} | {spread} "
            f"| {ratio} | {ratios} | {row.base} |"
        )


def _subjects_table(subjects: Sequence[Subject]) -> Iterator[str]:
    yield "| library | versions | measured as |\n| --- | --- | --- |"
    for subject in subjects:
        versions = ", ".join(f"{name} {which}" for name, which in subject.versions.items())
        variants = "; ".join(f"{name}: {each['what']}" for name, each in subject.variants.items())
        yield f"| {subject.name} | {versions or subject.missing} | {variants or 'nothing'} |"


def _between(spread: Spread) -> str:
    return f"{figure(spread.low)} to {figure(spread.high)}"


def chart(results: Results) -> str:
    """Sealing and opening 1 KiB with a cached key, everybody."""
    panels = [
        Panel(title, sorted(_bars(results, case), key=lambda bar: bar.value))
        for case, title in _CHARTED.items()
    ]
    return drawn("Time as a multiple of one bare AES-256-GCM call (logarithmic)", panels)


def _bars(results: Results, case: str) -> Iterator[Bar]:
    for row in results:
        if row.suite == "cached" and row.case == case and row.ratio:
            yield Bar(row.subject, row.ratio.median, row.subject.startswith(_OURS))
