"""Key services in processes of their own, which can be cut off, made to hang and brought back.

``python -m tests.fenced KIND`` is such a process: it writes what a client has to know as one line
of JSON, then obeys one order a line and answers each with another.  It ends with its standard
input, so that none outlives whoever started it.  AWS, Azure and Google are servers behind gates;
the token is behind a socket, by p11-kit; the local store is a file, which can only be gone or
damaged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from kms_core import InstanceConfig, Secret
from kms_core.cli.keepers import own_environment
from kms_core.testing.servers import AzureServer, Failure, GcpServer, Panel, SoftHsm
from kms_core.testing.servers import StrictAwsServer as AwsServer
from kms_core.testing.servers.closing import Closed
from kms_local import KeyStore

ROOT: Final = Path(__file__).parents[1]
#: How a service that can be reached is unwell.
BROWNOUTS: Final = (
    Failure.THROTTLE,
    Failure.SERVER_ERROR,
    Failure.MALFORMED,
    Failure.SLOW,
)


# --- in the service's process --------------------------------------------------------------------


@frozen
class Kept:
    """A service that runs: what its instance is configured with, and what can be done to it."""

    provider: str
    options: Mapping[str, str | bool]
    actions: Mapping[str, Callable[[], object]]
    secrets: Mapping[str, str] = field(factory=dict)
    environment: Mapping[str, str] = field(factory=dict)


def _aws(stack: ExitStack, _: Path) -> Kept:
    server = stack.enter_context(AwsServer())
    options: dict[str, str | bool] = {
        "key": server.create_key(),
        "endpoint_url": server.endpoint_url,
        "insecure": True,
    }
    secrets = {
        "access_key_id": server.access_key_id,
        "secret_access_key": server.secret_access_key,
    }
    return Kept("aws-kms", options, _switches(server.panel), secrets)


def _azure(stack: ExitStack, _: Path) -> Kept:
    server = stack.enter_context(AzureServer())
    server.create_key("app", "RSA")
    options: dict[str, str | bool] = {
        "key": "app",
        "vault_url": server.vault_url,
        "ca_file": str(server.ca_file),
        "verify_challenge": False,
    }
    return Kept("azure-keyvault", options, _switches(server.panel), {"token": server.token})


def _google(stack: ExitStack, _: Path) -> Kept:
    server = stack.enter_context(GcpServer())
    options: dict[str, str | bool] = {
        "key": server.create_key(),
        "endpoint": server.endpoint,
        "insecure": True,
    }
    return Kept("gcp-kms", options, _switches(server.panel))


def _switches(panel: Panel) -> dict[str, Callable[[], object]]:
    return {
        "cut": partial(panel.fail, Failure.REFUSE),
        "hang": partial(panel.fail, Failure.HANG),
        **{failure.value: partial(panel.fail, failure) for failure in BROWNOUTS},
        "restore": panel.heal,
        "count": panel.count,
    }


def _token(stack: ExitStack, folder: Path) -> Kept:
    SoftHsm.install(ROOT / "build" / "softhsm")
    token = stack.enter_context(SoftHsm(folder))
    token.create_key("app", "RSA")
    remote = stack.enter_context(token.remote())
    options: dict[str, str | bool] = {
        "module": str(remote.module),
        "token": token.token,
        "key": "app",
        "mechanism": "rsa-oaep-sha1",  # all that SoftHSM has
        "protection": "software",
    }
    actions: dict[str, Callable[[], object]] = {
        "cut": remote.kill,
        "hang": remote.stop,
        "restore": remote.restart,
    }
    address = "P11_KIT_SERVER_ADDRESS"
    environment = {address: os.environ[address]}
    return Kept("pkcs11", options, actions, {"pin": token.pin}, environment)


def _local(_: ExitStack, folder: Path) -> Kept:
    store, away = folder / "kms-local.keys", folder / "away"
    KeyStore.create(store)

    def lose() -> None:
        store.rename(away)

    def damage() -> None:
        lose()
        store.write_bytes(b"not a key store")
        store.chmod(0o600)

    def restore() -> None:
        away.rename(store)

    actions = {"cut": lose, Failure.MALFORMED.value: damage, "restore": restore}
    return Kept("local", {"path": str(store)}, actions)


KINDS: Final[Mapping[str, Callable[[ExitStack, Path], Kept]]] = {
    "aws": _aws,
    "azure": _azure,
    "google": _google,
    "softhsm": _token,
    "local": _local,
}
#: One of each kind, called after it.
EVERYBODY: Final = {kind: kind for kind in KINDS}


def keep(kind: str) -> None:
    """Be that service until standard input ends."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            kept = KINDS[kind](stack, folder)
        except FileNotFoundError as exc:
            _say({"absent": str(exc)})
            return
        _say(
            {
                "provider": kept.provider,
                "options": kept.options,
                "secrets": kept.secrets,
                "environment": kept.environment,
                "actions": [name for name in kept.actions if name not in {"restore", "count"}],
            }
        )
        for order in sys.stdin:
            _say(kept.actions[order.strip()]())


def _say(something: object) -> None:
    print(json.dumps(something), flush=True)  # noqa: T201  the other side reads it


# --- on the client's side ------------------------------------------------------------------------


class Absent(Exception):
    """A kind of service that cannot run here, with the reason."""


class Service(Closed):
    """One service in its process: running once ``instance`` is known, until ``close``."""

    def __init__(self, name: str, kind: str) -> None:
        self.name: Final = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fenced", kind],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the client, which then ends this
        )
        self.instance = InstanceConfig("")
        self.environment: Mapping[str, str] = {}
        self.actions: Sequence[str] = ()

    def await_start(self) -> None:
        """Return when it runs; raises ``Absent`` where it cannot."""
        facts = self._answer()
        if "absent" in facts:
            raise Absent(f"{self.name}: {facts['absent']}")
        secrets = {name: Secret(value) for name, value in facts["secrets"].items()}
        self.instance = InstanceConfig(facts["provider"], {**facts["options"], **secrets})
        self.environment, self.actions = facts["environment"], facts["actions"]

    def do(self, action: str) -> Any:
        """Have it fail so, ``restore`` it, or ``count`` its requests; done on return."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{action}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End its process.  Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"the process of {self.name} has ended")
        return json.loads(line)


@contextmanager
def services(kinds: Mapping[str, str] = EVERYBODY) -> Iterator[dict[str, Service]]:
    """Services by name, each of the kind that is given for it; ended in the end.

    Where there is no SoftHSM, or no p11-kit, the token is left out.
    """
    with own_environment(), ExitStack() as stack:
        made = [stack.enter_context(Service(name, kind)) for name, kind in kinds.items()]
        started = {}
        for service in made:
            try:
                service.await_start()
            except Absent as exc:
                print(exc, file=sys.stderr)  # noqa: T201  for whoever runs a script
            else:
                started[service.name] = service
                stack.enter_context(_environment(service.environment))
        yield started


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    keep(sys.argv[1])
