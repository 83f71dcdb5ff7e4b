"""The soak in short, and that it would notice what it is there to notice."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import LOCAL, SETTLED, World, plan
from tests.fenced import BROWNOUTS
from tests.soak import (
    Item,
    Ledger,
    Soak,
    Tally,
    context_of,
    plaintext_of,
)
from tests.support import client_for, service

ACTIONS = {
    **dict.fromkeys(("aws", "azure", "google"), ("cut", "hang", *BROWNOUTS)),
    "softhsm": ("cut", "hang"),
    LOCAL: ("cut", "malformed"),
}
STEPS = 2000
ROOT = Path(__file__).parents[1]


def unwell_after_each(seed: int, *, blackouts: bool = False) -> Iterator[set[str]]:
    """Who is in trouble after each action of a plan."""
    unwell: set[str] = set()
    for taken in itertools.islice(plan(ACTIONS, seed, blackouts=blackouts), STEPS):
        if taken.action == "restore":
            unwell.remove(taken.service)
        else:
            assert taken.service not in unwell
            unwell.add(taken.service)
        yield set(unwell)


def test_a_short_soak_finds_nothing() -> None:
    """Everything opens, and nothing is left behind.

    In a process of its own: a PKCS#11 client that was loaded once stays with the token it knew.
    """
    command = [sys.executable, "-m", "tests.soak", "--operations", "600", "--threads", "4"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    report = dict(re.findall(r"\| (.+?) +\| +(.+?) \|", done.stdout))
    assert (done.returncode, report.get("violations")) == (0, "0"), done.stdout + done.stderr
    assert int(report["operations in the chaos"]) > 500
    assert report["envelopes opened at the end"] == report["seal"]
    assert report["threads that stayed"] == "0"


def test_a_seed_says_what_happens() -> None:
    """So that a run can be repeated."""
    first, again, other = (list(itertools.islice(plan(ACTIONS, n), STEPS)) for n in (1, 1, 2))
    assert first == again != other
    assert [taken.at for taken in first] == sorted(taken.at for taken in first)


def test_every_trouble_is_had_and_somebody_remote_is_always_well() -> None:
    """Otherwise there would be nothing to demand of the client."""
    assert all(ACTIONS.keys() - {LOCAL} - unwell for unwell in unwell_after_each(1))
    had = {(taken.service, taken.action) for taken in itertools.islice(plan(ACTIONS, 1), STEPS)}
    expected = {(name, action) for name, actions in ACTIONS.items() for action in actions}
    assert had == expected | {(name, "restore") for name in ACTIONS}


def test_blackouts_leave_nobody() -> None:
    """Where they are asked for."""
    assert set(ACTIONS) in list(unwell_after_each(1, blackouts=True))


class Obedient:
    """Stands for a service that does what it is told."""

    def do(self, action: str) -> None:
        """It takes no time."""


@pytest.fixture
def world() -> World:
    """One service, which has been well for long."""
    made: Any = {"aws": Obedient()}
    world = World(made)
    world._well_since["aws"] = 0.0
    return world


def test_only_a_service_that_was_well_throughout_is_held_against_a_call(world: World) -> None:
    """Not one that has just come back, and not one that is in trouble."""
    assert world.settled(100.0, ["aws"]) == ["aws"]
    world.apply("aws", "cut")
    assert world.settled(100.0, ["aws"]) == []
    world.apply("aws", "restore")
    back = world._well_since["aws"]
    assert back is not None
    assert world.settled(back + SETTLED / 2, ["aws"]) == []
    assert world.settled(back + SETTLED, ["aws"]) == ["aws"]


# --- what it would notice ------------------------------------------------------------------------


@pytest.fixture
def soak(world: World) -> Iterator[Soak]:
    """One that uses a service in memory, named after the one in the world."""
    with (
        tempfile.TemporaryFile() as file,
        client_for({"aws": service("aws")}, key_context=("tenant",)) as kms,
    ):
        yield Soak(kms, kms, {"aws": "memory"}, world, Tally(), Ledger(file), operations=50)


def test_what_went_well_is_no_violation(soak: Soak) -> None:
    """And every envelope is kept."""
    soak.work(1)
    soak.open_all()
    assert soak.tally.violations == []
    assert soak.done == 50
    assert len(soak.ledger) == soak.tally.counts["seal"] > 0
    numbers = [item.number for item in soak.ledger]
    assert numbers == sorted(set(numbers))


def test_a_wrong_plaintext_is_noticed(soak: Soak) -> None:
    """While things are going on, and in the end."""
    sealed = soak.caching.seal(plaintext_of(2), context_of(1))
    soak.ledger.add(Item(1, sealed))
    soak._open(soak.caching, Item(1, sealed))
    soak.open_all()
    assert soak.tally.violations == ["envelope 1 opened to something else"] * 2


def test_a_lost_envelope_is_noticed(soak: Soak) -> None:
    """One that does not open though everybody is well."""
    sealed = soak.caching.seal(plaintext_of(1), context_of(1))
    soak.ledger.add(Item(1, sealed[:-1]))
    soak.open_all()
    (violation,) = soak.tally.violations
    assert violation.startswith("envelope 1 is lost: ")


def test_a_failure_without_an_outage_is_noticed(soak: Soak) -> None:
    """The world says that the service is well; the error says that it is not."""
    item = Item(1, soak.caching.seal(plaintext_of(1), context_of(1)))
    soak.caching.force_breaker("aws", "open")
    soak._open(soak.caching, item)
    (violation,) = soak.tally.violations
    assert violation.startswith("open failed while aws was well: ")


def test_a_failure_in_an_outage_is_counted(soak: Soak, world: World) -> None:
    """It is nobody's fault here."""
    item = Item(1, soak.caching.seal(plaintext_of(1), context_of(1)))
    world.apply("aws", "cut")
    soak.caching.force_breaker("aws", "open")
    soak._open(soak.caching, item)
    assert soak.tally.violations == []
    assert soak.tally.counts["open failed in an outage"] == 1


def test_an_error_that_no_outage_leads_to_is_noticed(soak: Soak) -> None:
    """Such as one that says that the envelope is altered."""
    sealed = soak.caching.seal(plaintext_of(1), context_of(2))
    soak.ledger.add(Item(1, sealed))
    soak.operations = 20
    soak.work(1)
    assert any(one.startswith("unexpected IntegrityError: ") for one in soak.tally.violations)
