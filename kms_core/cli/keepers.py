"""The key services of the demonstration: each of another kind, on this machine, gone when told so.

All are the servers of ``kms_core.testing.servers``.  What is not installed is left out, with a
reason that says how to get it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

INSTALL: Final = "pip install 'kms-core[demo]'"
LOCAL: Final = "local"
#: Where SDKs look for the user's own settings, which they would go by.
_OF_THE_USER: Final = ("AWS_", "AZURE_", "CLOUDSDK_", "GCLOUD_", "GOOGLE_")
_KEPT_AT_HOME: Final = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}

AWS: Final = """\
[instances.aws]
provider = "aws-kms"
key = "{key}"
endpoint_url = "{url}"
insecure = true              # plain http, which is refused beyond this machine
access_key_id = {{ env = "KMS_DEMO_AWS_ACCESS_KEY_ID" }}
secret_access_key = {{ env = "KMS_DEMO_AWS_SECRET_ACCESS_KEY" }}
"""
AZURE: Final = """\
[instances.azure]
provider = "azure-keyvault"
key = "app"
vault_url = "{url}"
ca_file = "{ca_file}"
verify_challenge = false     # this server stands for a vault, and is not below vault.azure.net
token = {{ env = "KMS_DEMO_AZURE_TOKEN" }}
"""
GOOGLE: Final = """\
[instances.google]
provider = "gcp-kms"
key = "{key}"
endpoint = "{endpoint}"
insecure = true              # no TLS and no credentials, likewise
"""
SOFTHSM: Final = """\
[instances.softhsm]
provider = "pkcs11"
module = "{module}"
token = "{token}"
key = "app"
pin = {{ env = "KMS_DEMO_SOFTHSM_PIN" }}
protection = "software"      # a token in software: real ones are "hsm"
"""
LOCAL_FILE: Final = """\
[instances.local]
provider = "local"
path = "kms-local.keys"
"""


@frozen
class Trouble:
    """A way to fail other than being gone: how it is put, what calls come to, how to begin it."""

    told: str
    outcome: str
    begin: Callable[[], None]
    end: Callable[[], None]


@frozen
class Keeper:
    """A key service that runs: its instance in the configuration, and what can be done to it."""

    name: str
    introduction: str
    table: str
    lose: Callable[[], None]
    restore: Callable[[], None]
    trouble: Trouble | None = None


@frozen
class Kind:
    """A kind of key service.

    ``needs``: modules; ``lacks`` says what else is missing, if anything.  ``start`` runs one, with
    its secrets in the environment, until the stack is unwound; it raises ``OSError`` where the
    service turns out not to work here.
    """

    name: str
    needs: tuple[str, ...]
    start: Callable[[ExitStack, Path], Keeper]
    lacks: Callable[[], str | None] = lambda: None

    def absence(self) -> str | None:
        """Why it cannot run, with what to do about it; ``None`` if it can."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"it needs {', '.join(missing)}: {INSTALL}" if missing else self.lacks()


def start_aws(stack: ExitStack, folder: Path) -> Keeper:  # noqa: ARG001  every kind's signature
    """AWS KMS as moto plays it."""
    from kms_core.testing.servers import AwsServer

    server = stack.enter_context(AwsServer())
    for variable in ("KMS_DEMO_AWS_ACCESS_KEY_ID", "KMS_DEMO_AWS_SECRET_ACCESS_KEY"):
        _set(stack, variable, "demo")
    return Keeper(
        "aws",
        f"aws is AWS KMS, played by moto at {server.endpoint_url}.",
        AWS.format(key=server.create_key("eu-west-1"), url=server.endpoint_url),
        lose=server.cut,
        restore=server.restore,
    )


def start_azure(stack: ExitStack, folder: Path) -> Keeper:  # noqa: ARG001  as above
    """An Azure Key Vault."""
    from kms_core.testing.servers import AzureServer, Failure

    server = stack.enter_context(AzureServer())
    server.create_key("app", "RSA")
    _set(stack, "KMS_DEMO_AZURE_TOKEN", server.token)
    return Keeper(
        "azure",
        f"azure is a strict Azure Key Vault at {server.vault_url}.",
        AZURE.format(url=server.vault_url, ca_file=server.ca_file.as_posix()),
        lose=server.gate.cut,
        restore=server.gate.restore,
        trouble=Trouble(
            "azure now answers everything with: too many requests.",
            "throttled",
            lambda: server.panel.fail(Failure.THROTTLE),
            server.panel.heal,
        ),
    )


def start_google(stack: ExitStack, folder: Path) -> Keeper:  # noqa: ARG001  as above
    """Google Cloud KMS."""
    from kms_core.testing.servers import Failure, GcpServer

    server = stack.enter_context(GcpServer())
    return Keeper(
        "google",
        f"google is a strict Google Cloud KMS at {server.endpoint}.",
        GOOGLE.format(key=server.create_key("app"), endpoint=server.endpoint),
        lose=server.gate.cut,
        restore=server.gate.restore,
        trouble=Trouble(
            "google now answers with checksums that are wrong.",
            "unavailable",
            lambda: server.panel.fail(Failure.CORRUPT_CRC),
            server.panel.heal,
        ),
    )


def start_softhsm(stack: ExitStack, folder: Path) -> Keeper:
    """A PKCS#11 token."""
    from kms_core.testing.servers import SoftHsm

    own = folder / "softhsm"
    own.mkdir()
    token = stack.enter_context(SoftHsm(own))
    token.create_key("app")
    _set(stack, "KMS_DEMO_SOFTHSM_PIN", token.pin)
    return Keeper(
        "softhsm",
        f"softhsm is a PKCS#11 token, {token.token}, of SoftHSM 2.",
        SOFTHSM.format(module=token.module.as_posix(), token=token.token),
        lose=token.remove_token,
        restore=token.restore_token,
    )


def start_local(stack: ExitStack, folder: Path) -> Keeper:  # noqa: ARG001  as above
    """A key in a file."""
    from kms_local import KeyStore

    store = folder / "kms-local.keys"
    away = store.with_suffix(".away")
    KeyStore.create(store)
    return Keeper(
        LOCAL,
        "local is a key in a file.",
        LOCAL_FILE,
        lose=lambda: _move(store, away),
        restore=lambda: _move(away, store),
    )


def _set(stack: ExitStack, variable: str, value: str) -> None:
    os.environ[variable] = value
    stack.callback(os.environ.pop, variable, None)


def _move(file: Path, to: Path) -> None:
    file.rename(to)


def _lacking_softhsm() -> str | None:
    if os.name != "posix":
        return "this system has none"
    from kms_core.testing.servers import SoftHsm
    from kms_core.testing.servers.softhsm import HOW_TO_INSTALL

    return None if SoftHsm.find() else HOW_TO_INSTALL


#: In the order of preference that the configuration gives them.
KINDS: Final = (
    Kind("aws", ("flask", "flask_cors", "kms_aws", "moto"), start_aws),
    Kind("azure", ("kms_azure", "trustme"), start_azure),
    Kind("google", ("grpc", "kms_gcp", "trustme"), start_google),
    Kind("softhsm", ("kms_pkcs11", "pkcs11"), start_softhsm, _lacking_softhsm),
    Kind(LOCAL, ("kms_local",), start_local),
)


def start_all(
    stack: ExitStack, folder: Path, left_out: Callable[[str, str], None]
) -> tuple[Keeper, ...]:
    """Every kind that can run here; ``left_out`` is told the name and the reason of the others."""
    keepers = []
    for kind in KINDS:
        reason = kind.absence()
        if reason is None:
            try:
                keepers.append(kind.start(stack, folder))
            except OSError as exc:
                reason = f"it does not work here: {exc}"
        if reason is not None:
            left_out(kind.name, reason)
    return tuple(keepers)


@contextmanager
def own_environment() -> Iterator[None]:
    """None of the user's settings for SDKs, which would go by them, and none from elsewhere."""
    hidden = {
        name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_OF_THE_USER)
    }
    os.environ.update(_KEPT_AT_HOME)
    try:
        yield
    finally:
        for name in _KEPT_AT_HOME:
            del os.environ[name]
        os.environ.update(hidden)
