"""The benchmarks' own logic, and one small run of them."""

from __future__ import annotations

import io
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as command
from benchmarks import bench, limits, plan, report, runner, timing
from benchmarks.bench import Bench, Options, Subject
from benchmarks.chart import Bar, Panel, drawn
from benchmarks.environments import NotInstalled, Peer, find_peers, python_of
from benchmarks.peer import Duel, Herd, Tally, Variant, Vault
from benchmarks.remote import Remote, SubjectFailed
from benchmarks.results import Results, Row, Spread, row_of

PEERS = {"asherah", "aws-encryption-sdk", "fernet", "tink"}


class Clock:
    """Moves on by what a call is said to take."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def takes(self, nanoseconds: int) -> Callable[[], None]:
        def call() -> None:
            self.now += nanoseconds

        return call


def row(suite: str, case: str, subject: str, ratio: float, value: float = 1.0) -> Row:
    """A row with one sample."""
    return Row(suite, case, subject, Spread.of([value]), "us", Spread.of([ratio]))


def quiet(folder: Path, **options: Any) -> Options:
    """Options that print nothing."""
    return Options(folder, quick=True, say=lambda _: None, **options)


# --- timing --------------------------------------------------------------------------------------


@given(st.integers(1, 10**7), st.integers(1, 10**8))
def test_a_batch_is_as_long_as_asked_for(nanoseconds: int, at_least: int) -> None:
    """So many calls are made that the clock's grain does not matter, and not many more."""
    clock = Clock()
    count = timing.calibrated(clock.takes(nanoseconds), at_least, clock)
    assert count * nanoseconds >= min(at_least, nanoseconds << 20)
    assert (count - 1) * nanoseconds <= 2 * at_least


def test_neither_a_cold_call_nor_a_hiccup_makes_batches_short() -> None:
    """What takes long only once is not how long a call takes."""
    clock = Clock()
    once = iter([10**6, 10, 3000])

    def call() -> None:
        clock.now += next(once, 10)

    assert timing.calibrated(call, 2000, clock) >= 200


def test_a_batch_tells_the_time_of_one_call() -> None:
    """The total is divided by the number of calls."""
    clock = Clock()
    assert timing.batch(clock.takes(50), 7, clock) == 50


def test_both_sides_of_a_duel_go_first_in_turn() -> None:
    """Neither profits from what the other left in the caches."""
    order: list[str] = []
    duel = Duel(lambda: order.append("base"), lambda: order.append("subject"), before=int)
    timer = timing.Timer(duel)
    timer.sample(subject_first=False)
    timer.sample(subject_first=True)
    assert order == ["base", "subject", "subject", "base"]


def test_what_is_done_before_a_call_is_done_before_every_call() -> None:
    """A duel with a preparation makes single calls, each with its own."""
    order: list[str] = []
    duel = Duel(
        lambda: order.append("call"), lambda: order.append("call"), before=lambda: order.append("-")
    )
    timing.Timer(duel).sample(subject_first=False)
    assert order == ["-", "call", "-", "call"]


def test_threads_are_let_go_together_and_all_are_waited_for() -> None:
    """The time ends with the last of them."""
    tally = Tally()
    began, ended = timing.together(tally.add, 8)
    assert tally() == 8
    assert began <= ended


def test_an_error_in_a_thread_is_raised_by_the_caller() -> None:
    """A measurement that failed is none."""
    with pytest.raises(ZeroDivisionError):
        timing.together(lambda: 1 // 0, 3)


# --- subjects and their processes ----------------------------------------------------------------


def toy(*, fails: bool = False) -> ModuleType:
    """A subject that keeps what it is given."""

    def vault() -> Vault:
        if fails:
            raise ValueError("no vault")
        return Vault(sealing=lambda data: lambda: data, opening=lambda sealed: lambda: sealed)

    def herd(_: float) -> Herd:
        tally = Tally()
        return Herd(tally.add, tally)

    module: Any = ModuleType("toy")
    module.REQUIREMENTS = ("cryptography==1",)
    module.VARIANTS = (
        Variant("toy", "does nothing", envelope=True, cached=vault, herd={"seal, cold": herd}),
    )
    return module  # type: ignore[no-any-return]


def answers(subject: ModuleType, *requests: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a runner says to these requests."""
    told = io.StringIO()
    runner.serve(runner.Runner(subject), map(json.dumps, requests), told)
    return [json.loads(line) for line in told.getvalue().splitlines()]


def timed(**changes: Any) -> dict[str, Any]:
    """A request to time the toy."""
    case = plan.Case("cached", "open, 16 B", "open", "base", {"bytes": 16}, samples=2, at_least=1)
    return {**case.request, "offer": "toy", **changes}


def test_a_subject_tells_what_can_be_measured_of_it() -> None:
    """By operation, with the version that is installed and not the one that was wished for."""
    (said,) = answers(toy(), {"do": "hello"})
    assert said["offers"] == {"seal": ["toy"], "open": ["toy"], "herd seal, cold": ["toy"]}
    assert said["versions"]["cryptography"] != "1"


def test_a_subject_is_timed_beside_the_bare_cipher() -> None:
    """Every sample has both times."""
    (taken,) = answers(toy(), timed())
    assert len(taken["base"]) == len(taken["subject"]) == 2
    assert min(*taken["base"], *taken["subject"]) > 0


def test_a_case_that_breaks_does_not_end_the_subject() -> None:
    """Its error is the answer, and the next request is answered."""
    broken, herd = answers(
        toy(fails=True),
        timed(),
        {"do": "herd", "offer": "toy", "crowd": "seal, cold", "threads": 5, "delay": 0},
    )
    assert broken == {"error": "ValueError: no vault"}
    assert herd["asked"] == 5


def test_opening_something_else_is_an_error() -> None:
    """Nobody is fast by being wrong."""
    subject: Any = toy()
    wrong = Vault(sealing=lambda data: lambda: data, opening=lambda _: lambda: b"")
    subject.VARIANTS = (Variant("toy", "", envelope=True, cached=lambda: wrong),)
    (answer,) = answers(subject, timed())
    assert "not what was sealed" in answer["error"]


def test_a_subject_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Asked and answered through pipes; it ends when it is no longer needed."""
    with Remote("benchmarks.peers.fernet", Path(sys.executable), tmp_path / "log") as remote:
        taken = remote.ask(**timed(offer="Fernet"))
    assert len(taken["subject"]) == 2


def test_a_process_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    """What it wrote is in its log."""
    log = tmp_path / "log"
    with pytest.raises(SubjectFailed, match="its process ended"):
        Remote("benchmarks.peers.no_such_peer", Path(sys.executable), log)
    assert "no_such_peer" in log.read_text()


def test_a_process_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Its time is bounded; the run goes on without it."""
    with pytest.raises(SubjectFailed, match="its process ended"):
        Remote("benchmarks.peers.fernet", Path(sys.executable), tmp_path / "log", patience=0.0)


# --- peers' environments -------------------------------------------------------------------------


def test_every_peer_is_pinned_and_offers_something() -> None:
    """A figure without a version is worth nothing."""
    peers = {peer.name: peer for peer in find_peers()}
    assert peers.keys() >= PEERS
    for peer in peers.values():
        assert all("==" in each for each in peer.all_requirements)
        assert sys.modules[peer.module].VARIANTS


def test_a_peer_that_cannot_be_installed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the installer's last words."""
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho first >&2\necho 'no such distribution' >&2\nexit 1\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(NotInstalled, match="no such distribution"):
        python_of(Peer("none", "none", ("none==1",), "import none"), tmp_path / "venvs")


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run uses it as it is; other requirements get another one."""
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho >> {tmp_path}/calls\nmkdir -p $(echo \"$@\" | sed 's/.* //')\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    peer = Peer("toy", "toy", (), "")
    folder = tmp_path / "venvs"
    monkeypatch.chdir(tmp_path)
    assert python_of(peer, folder) == python_of(peer, folder)
    assert python_of(Peer("toy", "toy", ("more==1",), ""), folder) != python_of(peer, folder)
    assert len((tmp_path / "calls").read_text().splitlines()) == 4


# --- results and limits --------------------------------------------------------------------------


@given(st.lists(st.floats(0.001, 1e9), min_size=1))
def test_a_spread_holds_its_median(samples: list[float]) -> None:
    """Low to high are samples, and the median is between them."""
    spread = Spread.of(samples)
    assert spread.low <= spread.median <= spread.high
    assert {spread.low, spread.high} <= set(samples)


def test_times_become_speeds_and_ratios_stay_those_of_times() -> None:
    """Half the time is twice the speed, and a ratio of a half."""
    taken = row_of(("s", "c", "who"), [(2e6, 1e6)], factor=1.0, unit="MiB/s", base="b")
    assert taken.value.median == pytest.approx(1000)
    assert taken.ratio is not None
    assert taken.ratio.median == 0.5


def test_what_was_not_measured_is_found_nowhere() -> None:
    """Neither a missing row nor one without a ratio passes for a figure."""
    results = Results([Row("s", "c", "who", Spread.of([1.0]), "ms")])
    with pytest.raises(KeyError):
        results.ratio("s", "c", "who")
    with pytest.raises(KeyError):
        results.value("s", "c", "nobody")


def named(judged: list[limits.Verdict], start: str) -> limits.Verdict:
    """The first limit whose name starts so."""
    return next(verdict for verdict in judged if verdict.name.startswith(start))


def test_a_limit_is_met_missed_or_not_measured() -> None:
    """Missing figures are said to be missing."""
    results = Results(
        [
            row("cached", "seal, 256 B", plan.COMPACT, 2.5),
            row("cached", "open, 256 B", plan.COMPACT, 2.5),
        ]
    )
    judged = limits.verdicts(results, [])
    assert named(judged, "compact seal, 256 B").met is True
    assert named(judged, "compact open, 256 B").met is False
    assert named(judged, "inline seal, 256 B").met is None


def test_a_peer_is_compared_at_its_best_size() -> None:
    """Faster at every size means at the worst one for us, which is named."""
    results = Results(
        [
            row("cached", "seal, 64 B", plan.INLINE, 2.0),
            row("cached", "seal, 64 B", "them", 4.0),
            row("cached", "seal, 16 KiB", plan.INLINE, 3.0),
            row("cached", "seal, 16 KiB", "them", 2.0),
        ]
    )
    verdict = named(
        limits.verdicts(results, [limits.Peer("them", envelope=True)]), "inline seal, e"
    )
    assert verdict.measured == 1.5
    assert verdict.note == "worst at 16 KiB"
    assert verdict.met is False


def test_a_peer_without_an_envelope_is_shown_and_not_judged() -> None:
    """It does less; the figure stands there all the same."""
    results = Results(
        [
            row("cached", "seal, 64 B", plan.INLINE, 2.0),
            row("cached", "seal, 64 B", "them", 1.0),
        ]
    )
    judged = limits.verdicts(results, [limits.Peer("them", envelope=False)])
    verdict = named(judged, "inline seal, every size")
    assert verdict.measured == 2.0
    assert verdict.met is None


@given(st.lists(st.floats(0.1, 1e6), max_size=8))
def test_a_chart_is_a_picture_with_a_bar_for_every_figure(values: list[float]) -> None:
    """Well-formed, and longer bars for larger figures."""
    bars = [Bar(f"<{number}>", value, ours=False) for number, value in enumerate(values)]
    root = ET.fromstring(drawn("A & B", [Panel("panel", bars)]))  # noqa: S314  our own text
    drawn_bars = root.findall("{http://www.w3.org/2000/svg}rect")[1:]
    lengths = [float(bar.attrib["width"]) for bar in drawn_bars]
    assert len(lengths) == len(values)
    assert [length for _, length in sorted(zip(values, lengths, strict=True))] == sorted(lengths)


def test_a_report_shows_limits_missing_peers_and_what_broke(tmp_path: Path) -> None:
    """Nothing is left out silently."""
    finished = Bench(quiet(tmp_path))
    finished.results.add(row("cached", "seal, 1 KiB", plan.INLINE, 2.5))
    finished.subjects.append(Subject("them", missing="not installable here: no network"))
    finished.failures.append("cached/seal/them: gone")
    text = report.write(finished, 1.0, tmp_path / "deep" / "results.json")
    for expected in ("| not measured |", "no network", "cached/seal/them: gone", "2.5"):
        assert expected in text
    told = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert told["rows"][0]["ratio"]["median"] == 2.5
    assert "kms_core, inline" in (tmp_path / "chart.svg").read_text()


# --- whole runs ----------------------------------------------------------------------------------


def test_the_list_names_every_suite_and_peer(capsys: pytest.CaptureFixture[str]) -> None:
    """Without measuring or installing anything."""
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    suites = ("cached", "threads", "layers", "many", "streams", "files", "cold", "herd", "start-up")
    assert all(name in listed for name in (*suites, *PEERS))


def test_everybody_takes_turns_in_another_order_every_round() -> None:
    """All of them each time."""
    rounds = [list(bench.rotated("abc", number)) for number in range(4)]
    assert rounds == [list("abc"), list("bca"), list("cab"), list("abc")]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers are installed from an index, which tests do not ask."""
    monkeypatch.setattr(bench, "find_peers", lambda: iter(()))


@pytest.mark.usefixtures("alone")
def test_a_small_run_measures_what_is_wanted(tmp_path: Path) -> None:
    """Our own variants, in a process of their own, and nothing that was not asked for."""
    only = "cached/(seal|open), 256 B/|layers/circuit|herd/|many/"
    small = Bench(quiet(tmp_path, only=only))
    small.run()
    assert small.failures == []
    assert {row.suite for row in small.results} == {"cached", "layers", "herd", "many"}
    for name in (plan.COMPACT, plan.INLINE, plan.PLAIN_DICT):
        assert small.results.ratio("cached", "seal, 256 B", name) > 0
    case = f"seal, expired, {plan.HERD} threads, requests"
    assert small.results.value("herd", case, plan.INLINE) == 2


@pytest.mark.usefixtures("alone")
def test_a_run_without_its_subject_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code says so, and so does the report."""
    monkeypatch.setattr(bench, "OURS", "benchmarks.no_such_subject")
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    code = command.main(["--quick", "--only", "cached", "--json", str(tmp_path / "results.json")])
    assert code == 1
    assert "its process ended" in capsys.readouterr().out
