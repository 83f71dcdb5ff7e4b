"""One envelope in the hands of five key services of different kinds, real servers all of them.

AWS KMS, Azure Key Vault, Google Cloud KMS, a PKCS#11 token and a local file.  Whichever four are
gone, the fifth opens it.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import define, field, frozen

from kms_core import AllInstancesFailed, ConfigError, Event, Kms
from kms_core.cli.keepers import KINDS, Keeper, own_environment, start_all
from kms_core.testing.servers import SoftHsm

CONTEXT = {"tenant": "42"}
SECRET = b"attack at dawn"
PATIENCE = 60.0  # seconds for what takes two or three
SEGMENT = 4096
THREADS = 8
WORKERS = 2
EVERYBODY = tuple(kind.name for kind in KINDS)

#: Patient enough that a slow machine never looks like an outage; no refusal is remembered, for
#: services come back sooner here than anywhere else.  No data key is kept, so that every call shows
#: who was asked.
POLICIES = """
[calls]
deadline = "20s"
attempt_timeout = "10s"
hedge_after = "10s"
cooldown = "0s"

[envelope]
straggler_wait = "10s"
capsules = "capsules"

[cache]
max_age = 0
"""


@define
class Journal:
    """Which services were asked to unwrap, and answered."""

    events: list[Event] = field(factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def take_openers(self) -> set[str | None]:
        """Those that unwrapped something since this was last asked."""
        events, self.events = self.events, []
        return {e.instance for e in events if (e.operation, e.outcome) == ("decrypt", "ok")}


@frozen
class Services:
    """All that run here, and how to lose them."""

    folder: Path
    keepers: dict[str, Keeper]
    absent: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the configuration."""
        return tuple(self.keepers)

    def require(self, name: str) -> None:
        """Skip the test, with the reason, if this one does not run here."""
        if name in self.absent:
            pytest.skip(f"{name}: {self.absent[name]}")

    def configuration(self, name: str = "kms", policies: str = POLICIES) -> Path:
        """A file that names all of them."""
        path = self.folder / f"{name}.toml"
        path.write_text("\n".join([*(each.table for each in self.keepers.values()), policies]))
        return path

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """These are gone for as long as the block lasts."""
        with ExitStack() as stack:
            for name in names:
                self.keepers[name].lose()
                stack.callback(self.keepers[name].restore)
            yield

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Everybody else is gone for as long as the block lasts."""
        with self.without(*(other for other in self.names if other != name)):
            yield


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Every service that can run here; afterwards no thread of theirs is left."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if (module := softhsm()) is not None:
            patch.setenv("SOFTHSM2_MODULE", str(module))
        folder = tmp_path_factory.mktemp("services")
        absent: dict[str, str] = {}
        stack.enter_context(own_environment())
        keepers = start_all(stack, folder, absent.__setitem__)
        yield Services(folder, {keeper.name: keeper for keeper in keepers}, absent)
    assert eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("kms-")])


def softhsm() -> Path | None:
    """The module, installed if it can be; where not, the services say why it is absent."""
    try:
        return SoftHsm.install(Path(__file__).parents[1] / "build" / "softhsm")
    except FileNotFoundError:
        return None


def eventually(holds: Callable[[], object]) -> bool:
    """Whether it holds within reasonable time."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


@pytest.fixture
def journal() -> Journal:
    """What the client of this test does."""
    return Journal()


@pytest.fixture
def kms(services: Services, journal: Journal) -> Iterator[Kms]:
    """A client of all of them, who are well."""
    with Kms.from_config(services.configuration(), observe=journal) as client:
        assert eventually(lambda: is_well(client))
        yield client


def is_well(kms: Kms) -> bool:
    """Whether everybody answers; a token that is back is noticed within a fifth of a second."""
    return kms.health().status == "healthy"


def uris(kms: Kms, sealed: bytes) -> dict[str, str]:
    """Who holds the data key of an envelope, by instance: one recipient each."""
    scheme_of = {
        "aws": "aws-kms:",
        "azure": "azure-keyvault:",
        "google": "gcp-kms:",
        "softhsm": "pkcs11:",
        "local": "local:",
    }
    recipients = [recipient.key_uri for recipient in kms.inspect(sealed).recipients]
    held = {
        name: uri
        for name, scheme in scheme_of.items()
        for uri in recipients
        if uri.startswith(scheme)
    }
    assert len(held) == len(recipients)
    return held


# --- outages -------------------------------------------------------------------------------------


def test_every_service_that_is_installed_takes_part(services: Services) -> None:
    """Only SoftHSM, which is no Python package, may be absent."""
    assert set(services.absent) <= {"softhsm"}
    assert services.names == tuple(name for name in EVERYBODY if name not in services.absent)


def test_an_envelope_is_in_the_hands_of_all(kms: Kms, services: Services) -> None:
    """One recipient of each kind, nobody missing."""
    sealed = kms.seal(SECRET, CONTEXT)
    assert not kms.inspect(sealed).degraded
    assert set(uris(kms, sealed)) == set(services.names)
    assert kms.open(sealed, CONTEXT) == SECRET


@pytest.mark.parametrize("survivor", EVERYBODY)
def test_any_one_of_them_opens_it_alone(
    kms: Kms, services: Services, journal: Journal, survivor: str
) -> None:
    """The other four are killed, and it is this one that unwraps."""
    services.require(survivor)
    sealed = kms.seal(SECRET, CONTEXT)
    with services.only(survivor):
        journal.take_openers()
        assert kms.open(sealed, CONTEXT) == SECRET
        assert journal.take_openers() == {survivor}


@pytest.mark.parametrize("lost", EVERYBODY)
def test_sealing_goes_on_without_any_one_of_them(kms: Kms, services: Services, lost: str) -> None:
    """The envelope is degraded, names exactly who is missing, and opens during the outage."""
    services.require(lost)
    complete = uris(kms, kms.seal(SECRET, CONTEXT))
    with services.without(lost):
        sealed = kms.seal(SECRET, CONTEXT)
        assert kms.open(sealed, CONTEXT) == SECRET
    info = kms.inspect(sealed)
    assert info.degraded
    assert uris(kms, sealed).keys() == complete.keys() - {lost}
    (missing,) = info.missing
    assert complete[lost].startswith(missing)  # as configured, perhaps without the key's version


@pytest.mark.parametrize("lost", EVERYBODY)
def test_a_repaired_envelope_opens_through_the_one_that_was_missing(
    kms: Kms, services: Services, journal: Journal, lost: str
) -> None:
    """After it is back ``rewrap`` adds it, and it opens alone what it had missed."""
    services.require(lost)
    with services.without(lost):
        degraded = kms.seal(SECRET, CONTEXT)
    assert eventually(lambda: is_well(kms))
    repaired = kms.rewrap(degraded)
    assert not kms.inspect(repaired).degraded
    with services.only(lost):
        journal.take_openers()
        assert kms.open(repaired, CONTEXT) == SECRET
        assert journal.take_openers() == {lost}
        with pytest.raises(AllInstancesFailed):
            kms.open(degraded, CONTEXT)


def test_they_may_go_one_after_the_other(kms: Kms, services: Services) -> None:
    """What all of them hold opens until the last is gone, and again when one is back."""
    sealed = kms.seal(SECRET, CONTEXT)
    with ExitStack() as outage:
        for name in services.names[:-1]:
            outage.enter_context(services.without(name))
            assert kms.open(sealed, CONTEXT) == SECRET
        with services.without(services.names[-1]), pytest.raises(AllInstancesFailed) as failed:
            kms.open(sealed, CONTEXT)
        assert {attempt.instance for attempt in failed.value.attempts} == set(services.names)
        assert kms.open(sealed, CONTEXT) == SECRET


# --- other forms ---------------------------------------------------------------------------------


def test_a_compact_message_opens_through_one_alone(
    kms: Kms, services: Services, journal: Journal
) -> None:
    """Its capsule is in the store, and in the hands of all."""
    compact = kms.seal(SECRET, CONTEXT, inline=False)
    assert not kms.inspect(compact).recipients
    with services.only("google"):
        journal.take_openers()
        assert kms.open(compact, CONTEXT) == SECRET
        assert journal.take_openers() == {"google"}


def test_a_stream_opens_through_one_alone(kms: Kms, services: Services, journal: Journal) -> None:
    """Several segments, written while another service was down and read when four are."""
    plaintext = bytes(range(256)) * 40
    sealed = io.BytesIO()
    with (
        services.without("aws"),
        kms.sealing(sealed, CONTEXT, segment_bytes=SEGMENT) as writer,
    ):
        writer.write(plaintext)
    sealed.seek(0)
    with services.only("azure"):
        journal.take_openers()
        with kms.opening(sealed, CONTEXT) as reader:
            assert reader.read() == plaintext
        assert journal.take_openers() == {"azure"}


# --- domains -------------------------------------------------------------------------------------


def test_every_service_is_a_domain_and_a_local_copy_counts_for_none(services: Services) -> None:
    """``min_recipients`` may be the number of services, and not one more."""
    independent = len(services.names) - 1
    policy = "\n[cache]\nmax_age = 0\n[envelope]\nstraggler_wait = '10s'\nmin_recipients = {}"
    enough = services.configuration("enough", policy.format(independent))
    with Kms.from_config(enough) as kms:
        assert eventually(lambda: is_well(kms))
        assert not kms.inspect(kms.seal(SECRET, CONTEXT)).degraded
        with (
            services.without("azure"),
            pytest.raises(AllInstancesFailed, match=f"{independent - 1} of {independent} domains"),
        ):
            kms.seal(SECRET, CONTEXT)
    too_many = services.configuration("too-many", policy.format(independent + 1))
    with pytest.raises(ConfigError, match="too few distinct domains"), Kms.from_config(too_many):
        pass


# --- threads and processes -----------------------------------------------------------------------


def use_all(kms: Kms, *, recipients: int) -> None:
    """Seal to everybody, open, and have every single one wrap and unwrap."""
    sealed = kms.seal(SECRET, CONTEXT)
    info = kms.inspect(sealed)
    assert (len(info.recipients), info.missing) == (recipients, ())
    assert kms.open(sealed, CONTEXT) == SECRET
    for name in kms.breakers:
        wrapped = kms.encrypt(SECRET, CONTEXT, via=name)
        assert kms.decrypt(wrapped, CONTEXT) == SECRET


def test_threads_share_a_client(kms: Kms, services: Services) -> None:
    """Eight at once, from the first call on, which loads the SDKs and makes the connections."""
    start = threading.Barrier(THREADS)

    def work(_: int) -> None:
        start.wait(PATIENCE)
        for _ in range(3):
            use_all(kms, recipients=len(services.names))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert {breaker.state for breaker in kms.breakers.values()} == {"closed"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no os.fork")
def test_workers_forked_from_a_process_that_has_used_the_client_use_all(
    services: Services,
) -> None:
    """As a server that loads the application before it forks; it goes on beside its workers."""
    command = [sys.executable, __file__, str(services.configuration()), str(len(services.names))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def serve(path: str, recipients: int) -> int:
    """Use a client, fork workers that do, go on using it beside them; how many of them failed."""
    with Kms.from_config(path) as kms:
        use_all(kms, recipients=recipients)
        workers = [fork_worker(kms, recipients) for _ in range(WORKERS)]
        use_all(kms, recipients=recipients)
        ends = [os.waitpid(worker, 0)[1] for worker in workers]
        use_all(kms, recipients=recipients)
    return sum(map(bool, ends))


def fork_worker(kms: Kms, recipients: int) -> int:
    """A child that exits 0 if all five work for it too; its id."""
    worker = os.fork()
    if worker == 0:
        signal.alarm(int(PATIENCE))  # a child that hangs outlives no test run
        status = 1
        try:
            use_all(kms, recipients=recipients)
            kms.close()
            status = 0
        finally:
            os._exit(status)
    return worker


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], int(sys.argv[2])))
