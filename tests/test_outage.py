"""Outages end to end: configuration files, the public API, and real servers that really fail.

Two regions of AWS KMS behind gates on loopback and one local key file; what fails is cut off, made
to hang or taken away.  Time passes where it must by putting the client's clock forward.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import define, field, frozen

from kms_core import AllInstancesFailed, DeadlineExceeded, Kms, Unavailable
from kms_core.envelope import split
from kms_core.testing.servers import AwsServer
from kms_local import KeyStore

CONTEXT = {"tenant": "42"}
SECRET = b"attack at dawn"
PATIENCE = 20.0  # seconds for what takes milliseconds
RECOVERY = 60.0  # seconds: the default recovery_timeout
EVERYBODY = ("aws-eu", "aws-us", "local")
REGIONS = {"aws-eu": "eu-west-1", "aws-us": "us-east-1"}

AWS = """
[instances.{name}]
provider = "aws-kms"
key = "{key}"
endpoint_url = "{url}"
insecure = true
access_key_id = {{ file = "credential" }}
secret_access_key = {{ file = "credential" }}
required = {required}
"""
LOCAL = """
[instances.local]
provider = "local"
path = "kms-local.keys"
"""
#: Patient enough that a slow machine never looks like an outage.
PATIENT = {"calls": 'deadline = "20s"\nattempt_timeout = "10s"\nhealth_timeout = "10s"'}
#: For services that hang: whoever waits for them, waits two seconds and once.
BRISK = {"calls": 'attempt_timeout = "2s"\nattempts = 1\nhedge_after = "200ms"'}


@define
class Clock:
    """The real monotonic clock, put forward at will."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


@frozen
class World:
    """Three key services, each of which can be made to fail, and clients of them."""

    folder: Path
    regions: dict[str, AwsServer]
    keys: dict[str, str]
    clock: Clock = field(factory=Clock)

    @contextmanager
    def client(
        self,
        tables: dict[str, str],
        *,
        instances: tuple[str, ...] = EVERYBODY,
        required: str | None = None,
        envelope: str = "",
    ) -> Iterator[Kms]:
        """A client from a ``kms.toml`` written for it, which keeps no data key: it always asks."""
        parts = [self._instance(name, required) for name in instances]
        parts.append(f'[envelope]\nstraggler_wait = "10s"\n{envelope}')
        parts.append("[cache]\nmax_age = 0")
        parts += [f"[{name}]\n{body}" for name, body in tables.items()]
        path = self.folder / "kms.toml"
        path.write_text("\n".join(parts))
        with Kms.from_config(path, clock=self.clock) as kms:
            yield kms

    def lose(self, name: str, way: str = "cut") -> None:
        """Make an instance's service unusable."""
        if name == "local":
            self._store.rename(self._store.with_suffix(".away"))
        elif way == "hang":
            self.regions[name].hang()
        else:
            self.regions[name].cut()

    def _instance(self, name: str, required: str | None) -> str:
        if name == "local":
            return LOCAL
        return AWS.format(
            name=name,
            key=self.keys[name],
            url=self.regions[name].endpoint_url,
            required="true" if name == required else "false",
        )

    @property
    def _store(self) -> Path:
        return self.folder / "kms-local.keys"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """All three services up; afterwards no thread of theirs or of a client is left."""
    KeyStore.create(tmp_path / "kms-local.keys")
    (tmp_path / "credential").write_text("example\n")
    with AwsServer() as eu, AwsServer() as us:
        regions = {"aws-eu": eu, "aws-us": us}
        keys = {name: regions[name].create_key(region) for name, region in REGIONS.items()}
        yield World(tmp_path, regions, keys)
    assert eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("kms-")])


def eventually(holds: Callable[[], object]) -> bool:
    """Whether it holds within reasonable time."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


def uri(world: World, name: str) -> str:
    """The key URI of one of the AWS instances."""
    return f"aws-kms://{world.keys[name]}"


def seal_until_open(kms: Kms, name: str) -> bytes:
    """Seal until the breaker of a dead instance has opened; the last envelope."""
    for _ in range(10):
        sealed = kms.seal(SECRET, CONTEXT)
        if kms.breakers[name].state == "open":
            return sealed
    raise AssertionError(f"the breaker of {name} did not open: {kms.breakers[name]}")


# --- one is down ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "way", "tables"),
    [
        ("aws-eu", "cut", PATIENT),
        ("aws-us", "cut", PATIENT),
        ("aws-eu", "hang", BRISK),
        ("aws-us", "hang", BRISK),
        ("local", "taken away", PATIENT),
    ],
)
def test_reads_and_writes_survive_the_loss_of_any_one(
    world: World, lost: str, way: str, tables: dict[str, str]
) -> None:
    """Whoever is lost, and however: the old envelope opens, and a new one is made and opens."""
    with world.client(tables) as kms:
        before = kms.seal(SECRET, CONTEXT)
        assert not kms.inspect(before).degraded
        world.lose(lost, way)
        assert kms.open(before, CONTEXT) == SECRET
        during = kms.seal(SECRET, CONTEXT)
        assert len(kms.inspect(during).recipients) == 2
        assert len(kms.inspect(during).missing) == 1
        assert kms.open(during, CONTEXT) == SECRET


def test_a_complete_envelope_names_everybody(world: World) -> None:
    """With all services up nobody is missing, and each is asked exactly once."""
    with world.client(PATIENT) as kms:
        info = kms.inspect(kms.seal(SECRET, CONTEXT))
    assert not info.degraded
    uris = [recipient.key_uri for recipient in info.recipients]
    assert uris[:2] == [uri(world, "aws-eu"), uri(world, "aws-us")]
    assert uris[2].startswith("local://")
    assert [server.calls for server in world.regions.values()] == [1, 1]


def test_a_hanging_service_is_overtaken_before_it_times_out(world: World) -> None:
    """An open asks the next recipient after ``hedge_after``, long before the attempt is over."""
    tables = {"calls": 'deadline = "60s"\nattempt_timeout = "30s"\nhedge_after = "50ms"'}
    with world.client(tables) as kms:
        sealed = kms.seal(SECRET, CONTEXT)
        world.lose("aws-eu", "hang")
        assert kms.open(sealed, CONTEXT) == SECRET
        assert kms.breakers["aws-eu"].failures_in_window == 0, "it had timed out"
        assert world.regions["aws-eu"].calls == 2, "it had not been asked"
        world.regions["aws-eu"].cut()  # so that the call under way ends


def test_hanging_services_fail_as_slow_and_refusing_ones_as_unavailable(world: World) -> None:
    """The errors of a failed write say of each instance what was wrong with it."""
    with world.client(BRISK) as kms:
        world.lose("aws-eu", "hang")
        world.lose("aws-us", "cut")
        with pytest.raises(AllInstancesFailed) as failed:
            kms.seal(SECRET, CONTEXT)
    kinds = {attempt.instance: type(attempt.error) for attempt in failed.value.attempts}
    assert kinds == {"aws-eu": DeadlineExceeded, "aws-us": Unavailable}


# --- the breaker ---------------------------------------------------------------------------------


def test_an_open_breaker_keeps_calls_from_a_hanging_service(world: World) -> None:
    """Once it is open, seals and opens do without the service, and health says degraded."""
    with world.client(BRISK) as kms:
        sealed = kms.seal(SECRET, CONTEXT)
        world.lose("aws-eu", "hang")
        seal_until_open(kms, "aws-eu")
        calls = world.regions["aws-eu"].calls
        for _ in range(3):
            assert kms.open(sealed, CONTEXT) == SECRET
            assert kms.inspect(kms.seal(SECRET, CONTEXT)).missing == (uri(world, "aws-eu"),)
        assert world.regions["aws-eu"].calls == calls
        report = kms.health()
    assert report.status == "degraded"
    assert report.instances["aws-eu"].state == "unhealthy"
    assert report.instances["aws-eu"].breaker == "open"
    assert "aws-eu" in report.reason


def test_an_open_breaker_does_not_even_look_whether_the_service_is_back(world: World) -> None:
    """Until its time is over no call is made, though it would succeed."""
    with world.client(PATIENT) as kms:
        sealed = kms.seal(SECRET, CONTEXT)
        world.lose("aws-eu")
        seal_until_open(kms, "aws-eu")
        world.regions["aws-eu"].restore()
        calls = world.regions["aws-eu"].calls
        for _ in range(3):
            assert kms.open(sealed, CONTEXT) == SECRET
            assert kms.inspect(kms.seal(SECRET, CONTEXT)).degraded
        assert world.regions["aws-eu"].calls == calls


def test_a_service_that_comes_back_is_probed_and_used_again(world: World) -> None:
    """After ``recovery_timeout`` two successful probes close the breaker; envelopes are whole."""
    with world.client(PATIENT) as kms:
        world.lose("aws-eu")
        seal_until_open(kms, "aws-eu")
        world.regions["aws-eu"].restore()
        world.clock.advance(RECOVERY)
        states = []
        for _ in range(2):
            assert not kms.inspect(kms.seal(SECRET, CONTEXT)).degraded
            states.append(kms.breakers["aws-eu"].state)
        assert states == ["half-open", "closed"]
        assert kms.health().status == "healthy"


def test_a_service_that_is_still_down_costs_one_probe_and_waits_twice_as_long(
    world: World,
) -> None:
    """The failed probe fails no write, and the next one is due in twice the time."""
    with world.client(PATIENT) as kms:
        world.lose("aws-eu")
        seal_until_open(kms, "aws-eu")
        world.clock.advance(RECOVERY)
        assert kms.open(kms.seal(SECRET, CONTEXT), CONTEXT) == SECRET
        breaker = kms.breakers["aws-eu"]
    assert breaker.state == "open"
    assert RECOVERY < breaker.retry_after <= 2 * RECOVERY


# --- the repair ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", REGIONS)
def test_the_missing_recipient_is_added_later_and_opens_alone(world: World, lost: str) -> None:
    """The envelope says who is missing; rewrap adds it without touching the body."""
    with world.client(PATIENT) as kms:
        world.lose(lost)
        degraded = kms.seal(SECRET, CONTEXT)
        assert kms.inspect(degraded).missing == (uri(world, lost),)
        world.regions[lost].restore()
        repaired = kms.rewrap(degraded)
        assert kms.inspect(repaired).missing == ()
        assert len(kms.inspect(repaired).recipients) == len(EVERYBODY)
        assert split(repaired)[1] == split(degraded)[1]
        for other in set(EVERYBODY) - {lost}:
            world.lose(other)
        assert kms.open(repaired, CONTEXT) == SECRET
        with pytest.raises(AllInstancesFailed):
            kms.open(degraded, CONTEXT)


def test_a_repaired_envelope_opens_for_a_reader_that_knows_only_that_key(world: World) -> None:
    """Another application, configured with nothing but the repaired instance, can read it."""
    with world.client(PATIENT) as kms:
        world.lose("aws-us")
        degraded = kms.seal(SECRET, CONTEXT)
        world.regions["aws-us"].restore()
        repaired = kms.rewrap(degraded)
    with world.client(PATIENT, instances=("aws-us",)) as reader:
        assert reader.open(repaired, CONTEXT) == SECRET


def test_a_repair_during_the_outage_changes_nothing_and_says_so(world: World) -> None:
    """Without the service there is nothing to add, and the caller is told."""
    with world.client(PATIENT) as kms:
        world.lose("aws-eu")
        degraded = kms.seal(SECRET, CONTEXT)
        with pytest.raises(AllInstancesFailed, match="nothing was changed"):
            kms.rewrap(degraded)
        assert kms.open(degraded, CONTEXT) == SECRET


# --- more than one is down -----------------------------------------------------------------------


def test_a_local_copy_alone_is_no_substitute_for_the_services(world: World) -> None:
    """Falling back to a weaker keeper would be an accident, so nothing is written."""
    with world.client(PATIENT) as kms:
        world.lose("aws-eu")
        world.lose("aws-us")
        with pytest.raises(AllInstancesFailed, match="allow_weaker") as failed:
            kms.seal(SECRET, CONTEXT)
        assert kms.health().status == "unhealthy"
    assert {attempt.instance for attempt in failed.value.attempts} == set(REGIONS)


def test_a_local_copy_alone_is_enough_where_that_was_chosen(world: World) -> None:
    """With ``allow_weaker`` writing goes on, both services are on record as missing."""
    with world.client(PATIENT, envelope="allow_weaker = true") as kms:
        world.lose("aws-eu")
        world.lose("aws-us")
        sealed = kms.seal(SECRET, CONTEXT)
        info = kms.inspect(sealed)
        assert [recipient.provider for recipient in info.recipients] == ["local"]
        assert set(info.missing) == {uri(world, name) for name in REGIONS}
        assert kms.open(sealed, CONTEXT) == SECRET
        assert kms.health().status == "degraded"


@pytest.mark.parametrize(("way", "tables"), [("cut", PATIENT), ("hang", BRISK)])
def test_reads_go_on_through_the_local_copy_when_both_services_are_down(
    world: World, way: str, tables: dict[str, str]
) -> None:
    """What was sealed before needs any one of its recipients, the local one included."""
    with world.client(tables) as kms:
        sealed = kms.seal(SECRET, CONTEXT)
        world.lose("aws-eu", way)
        world.lose("aws-us", way)
        assert kms.open(sealed, CONTEXT) == SECRET


def test_nothing_opens_when_all_are_down_and_everything_when_they_are_back(world: World) -> None:
    """A total outage is reported with every attempt, and it damages nothing."""
    with world.client(PATIENT) as kms:
        sealed = kms.seal(SECRET, CONTEXT)
        for name in EVERYBODY:
            world.lose(name)
        with pytest.raises(AllInstancesFailed) as failed:
            kms.open(sealed, CONTEXT)
        assert {attempt.instance for attempt in failed.value.attempts} == set(EVERYBODY)
        world.regions["aws-us"].restore()
        assert kms.open(sealed, CONTEXT) == SECRET


def test_nothing_is_written_without_a_required_recipient(world: World) -> None:
    """``required = true`` puts one instance above availability."""
    with world.client(PATIENT, required="aws-eu") as kms:
        world.lose("aws-eu")
        with pytest.raises(AllInstancesFailed, match="required recipient aws-eu is missing"):
            kms.seal(SECRET, CONTEXT)
        world.regions["aws-eu"].restore()
        assert not kms.inspect(kms.seal(SECRET, CONTEXT)).degraded


def test_losing_another_than_the_required_recipient_degrades_as_ever(world: World) -> None:
    """Only the required one is indispensable."""
    with world.client(PATIENT, required="aws-eu") as kms:
        world.lose("aws-us")
        assert kms.inspect(kms.seal(SECRET, CONTEXT)).missing == (uri(world, "aws-us"),)


# --- the servers that fail on cue ----------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[AwsServer]:
    """One region by itself."""
    with AwsServer() as server:
        yield server


def connect(server: AwsServer) -> socket.socket:
    """A plain connection to a server's port."""
    url = urlsplit(server.endpoint_url)
    return socket.create_connection((str(url.hostname), int(url.port or 0)), timeout=PATIENCE)


def request(connection: socket.socket) -> bytes:
    """The first bytes of what is answered to a request; empty when the connection was broken."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        return connection.recv(8)
    except ConnectionError:
        return b""


def ended(connection: socket.socket) -> bool:
    """Whether the other side breaks the connection; what arrived before that is skipped."""
    try:
        while connection.recv(4096):
            continue
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_a_cut_breaks_connections_and_refuses_new_ones(server: AwsServer) -> None:
    """As after a firewall rule or a crashed process: refused at once, not merely slow."""
    with connect(server) as connection:
        assert request(connection) == b"HTTP/1.1"
        server.cut()
        assert ended(connection)
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_a_restored_server_has_its_old_port_and_keys(server: AwsServer) -> None:
    """A configuration stays valid across the outage."""
    url = server.endpoint_url
    for fail in (server.cut, server.hang):
        fail()
        server.restore()
        assert server.endpoint_url == url
        with connect(server) as connection:
            assert request(connection) == b"HTTP/1.1"


def test_a_hanging_server_accepts_and_counts_and_never_answers(server: AwsServer) -> None:
    """Old and new connections alike wait, until they are broken by the recovery."""
    with connect(server) as old:
        assert request(old) == b"HTTP/1.1"
        server.hang()
        with connect(server) as new:
            new.sendall(b"POST / HTTP/1.1\r\n\r\n")
            assert eventually(lambda: server.calls == 2)
            new.settimeout(0.1)
            with pytest.raises(TimeoutError):
                new.recv(1)
            server.restore()
            new.settimeout(PATIENCE)
            assert ended(new)


def test_every_way_to_fail_may_follow_every_other(server: AwsServer) -> None:
    """Whatever came before, the last order holds."""
    orders: tuple[Callable[[], Any], ...] = (server.cut, server.hang, server.restore)
    for first in orders:
        for second in orders:
            first()
            second()
            server.restore()
            with connect(server) as connection:
                assert request(connection) == b"HTTP/1.1"


def test_a_closed_server_takes_no_orders(server: AwsServer) -> None:
    """Closing is final, and may be repeated."""
    server.close()
    server.close()
    with pytest.raises(ValueError, match="closed"):
        server.restore()
