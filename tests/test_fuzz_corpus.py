"""Every entry point that takes bytes from outside, against what once was found and much more.

``nox -s fuzz`` goes on for as long as one likes; here are the committed inputs, and the first few
thousand mutations of them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from attrs import evolve

from tests.fuzz import run, seeds
from tests.fuzz.hunt import MAX_MEMORY, attempt, hunt, mutations
from tests.fuzz.known import openable, sealed
from tests.fuzz.mutate import ENVELOPE, Mutator
from tests.fuzz.targets import CORPUS, TARGETS, VALUE, Target

MUTATIONS = 3000
PATIENCE = 2.0  # seconds for one input: the machine may be busy, nothing here takes a tenth of it

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))


@each_target
def test_the_corpus_is_met_as_documented(target: Target) -> None:
    """Every committed input gives a value or a documented error, in bounded time."""
    report = hunt(target, target.seeds().values(), max_seconds=PATIENCE)

    assert not report.faults
    assert report.tried == len(target.seeds())
    assert report.outcomes[VALUE]


@each_target
def test_mutations_are_met_as_documented(target: Target) -> None:
    """So do thousands of variations, of which some are good and most are not."""
    inputs = itertools.islice(mutations(target, seed=1), MUTATIONS)

    report = hunt(target, inputs, max_seconds=PATIENCE)

    assert not report.faults
    assert report.tried == MUTATIONS
    assert report.memory <= MAX_MEMORY
    assert len(report.outcomes) > 1


@pytest.mark.parametrize("name", ["open_envelope", "open_stream", "open_routed"])
def test_every_pair_that_belongs_together_opens(name: str) -> None:
    """Else it would prove nothing that no forgery does."""
    target = TARGETS[name]

    assert {target.check(capsule + body) for capsule, body in openable()} == {VALUE}


def test_edits_get_past_the_first_checks() -> None:
    """Lengths, counts and items are edited so that a good part of the capsules still parses."""
    target = TARGETS["capsule"]
    seed_inputs = set(target.seeds().values())
    inputs = itertools.islice(mutations(target, 1), MUTATIONS)

    report = hunt(target, [data for data in inputs if data not in seed_inputs])

    assert report.outcomes[VALUE] > MUTATIONS // 20


def test_a_seed_stands_for_the_same_inputs() -> None:
    """A fault can be found again by its seed, and another seed finds others."""
    target = TARGETS["inspect"]
    first, again, other = (
        list(itertools.islice(mutations(target, seed), 50)) for seed in (1, 1, 2)
    )

    assert first == again
    assert first != other


def test_an_edit_keeps_every_length_around_it() -> None:
    """Growing the first pair of the scope grows its map, its capsule and nothing else."""
    capsule = sealed()[0].capsules["full"]
    shape = Mutator([capsule], ENVELOPE, 0).shape(capsule)
    value = next(length for length in shape.lengths if capsule[length.start :][:2] == b"t1")

    edited = shape.edited(capsule, value.start, value.end, b"tenant-2")

    assert edited.count(b"\x00\x08tenant-2") == 1
    assert len(edited) == len(capsule) + 6
    assert int.from_bytes(edited[4:8], "big") == len(edited)
    assert attempt(TARGETS["capsule"], edited) == VALUE


def test_faults_are_reported_once_each_with_the_shortest_input() -> None:
    """A broken promise and an undocumented error are two; how often they occur does not matter."""

    def breaks(data: bytes) -> str:
        assert len(data) != 2, "two bytes"
        return str(data[3])

    report = hunt(evolve(TARGETS["context"], check=breaks), [b"a", b"", b"ab", b"abc", b"abcd"])

    reasons = {fault.reason.partition(" ")[0]: fault.data for fault in report.faults.values()}
    assert reasons == {"IndexError": b"", "AssertionError": b"ab"}
    assert report.tried == 5
    assert report.outcomes == {"100": 1}


def test_slow_and_hungry_inputs_are_faults() -> None:
    """What takes longer, or more memory, than it may is reported like any other fault."""

    def eats(data: bytes) -> str:
        return str(len(bytes(MAX_MEMORY + 1)))

    target = evolve(TARGETS["context"], check=eats)
    slow = hunt(target, [b"x"], max_seconds=0.0)
    hungry = hunt(target, [b"x"] * 64, max_seconds=PATIENCE)

    assert [fault.reason for fault in slow.faults.values()] == ["took longer than 0 s"]
    assert [fault.reason for fault in hungry.faults.values()] == ["took more than 8 MiB of memory"]


def test_the_corpus_is_what_its_script_writes() -> None:
    """Seeds are as the script makes them; beside them lie former faults; all of it is small."""
    for folder, made in seeds.FOLDERS.items():
        for name, data in made():
            assert (CORPUS / folder / name).read_bytes() == data, f"{folder}/{name}"

    assert {folder.name for folder in CORPUS.iterdir()} == set(seeds.FOLDERS)
    assert sum(file.stat().st_size for file in CORPUS.glob("*/*")) < 200 << 10


def test_the_command_tries_targets_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each; a fault is kept in a file and makes it fail."""

    def broken(data: bytes) -> str:
        raise KeyError(data)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TARGETS, "broken", evolve(TARGETS["key_uri"], check=broken))

    assert run.main(["key_uri", "context", "--seconds", "0.05", "--seed", "5"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "key_uri",
        "context",
    ]
    assert run.main(["broken", "--seconds", "0.05", "--seed", "5"]) == 1
    (kept,) = Path("build", "fuzz").iterdir()
    assert f"{kept}: KeyError in" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run.main(["no-such-target"])
