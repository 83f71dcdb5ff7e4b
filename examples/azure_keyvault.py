"""Seal to a vault and to a Managed HSM, lose the vault, and open all the same.

    python examples/azure_keyvault.py              against two local servers that it starts itself
    python examples/azure_keyvault.py kms.toml     with the keys of your own configuration

The local servers need ``pip install 'kms-core[demo]'``; nothing leaves the machine then.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kms_core import Kms

if TYPE_CHECKING:
    from kms_core.testing.servers import AzureServer

CONTEXT = {"tenant": "42"}
MESSAGE = b"4111 1111 1111 1111"

INSTANCE = """\
[instances.{name}]
provider = "azure-keyvault"
key = "app"
vault_url = "{url}"
ca_file = "{ca_file}"
verify_challenge = false               # the server stands for a vault, and is not below azure.net
token = {{ file = "{name}.token" }}      # leave this out to use an identity of Azure

"""


def main() -> None:
    """Run with the configuration that is named, or with local servers."""
    if len(sys.argv) > 1:
        with Kms.from_config(sys.argv[1]) as kms:
            show_opened(kms, seal(kms))
    else:
        run_locally()


def run_locally() -> None:
    """Two servers, a configuration for them, an outage and a rotation."""
    from kms_core.testing.servers import AzureServer, Failure

    with (
        AzureServer() as vault,
        AzureServer(managed_hsm=True) as hsm,
        tempfile.TemporaryDirectory() as folder,
    ):
        vault.create_key("app", "RSA", size=3072)
        hsm.create_key("app", "oct-HSM")
        configuration = write_configuration(Path(folder), {"vault": vault, "hsm": hsm})
        with Kms.from_config(configuration) as kms:
            envelope = seal(kms)
            show_opened(kms, envelope)
            vault.panel.fail(Failure.REFUSE)
            kms.forget()  # the data key: as long as it is cached, nobody is asked
            print("the vault is cut off")
            show_opened(kms, envelope)
            vault.panel.heal()
            vault.create_key("app", "RSA", size=3072)
            kms.forget()
            print("the vault is back, and its key has a new version")
            show_opened(kms, envelope)


def write_configuration(folder: Path, servers: dict[str, AzureServer]) -> Path:
    """The file, beside the tokens that it refers to: they stand in no configuration."""
    tables = []
    for name, server in servers.items():
        (folder / f"{name}.token").write_text(server.token)
        tables.append(INSTANCE.format(name=name, url=server.vault_url, ca_file=server.ca_file))
    file = folder / "kms.toml"
    file.write_text("".join(tables))
    return file


def seal(kms: Kms) -> bytes:
    """Seal the message and tell who can open it."""
    envelope = kms.seal(MESSAGE, context=CONTEXT)
    print(f"sealed {len(MESSAGE)} bytes into {len(envelope)}, which any of these opens:")
    for recipient in kms.inspect(envelope).recipients:
        print(f"  {recipient.key_uri}")
    return envelope


def show_opened(kms: Kms, envelope: bytes) -> None:
    """Open it again, and stop here if that gives anything else."""
    if kms.open(envelope, context=CONTEXT) != MESSAGE:
        sys.exit("the envelope opened to something else")
    print("opened: it is what was sealed")


if __name__ == "__main__":
    main()
