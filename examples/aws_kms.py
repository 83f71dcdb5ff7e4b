"""Seal to AWS KMS keys in two regions, lose one region, and open all the same.

    python examples/aws_kms.py              against two local servers that it starts itself
    python examples/aws_kms.py kms.toml     with the keys of your own configuration

The local servers need ``pip install 'kms-core[demo]'``; nothing leaves the machine then.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from kms_core import Kms

CONTEXT = {"tenant": "42"}
MESSAGE = b"4111 1111 1111 1111"

INSTANCE = """\
[instances.{name}]
provider = "aws-kms"
key = "{key}"
endpoint_url = "{url}"
insecure = true                        # plain http, which is refused beyond this machine
access_key_id = {{ file = "id" }}        # leave these two out to use the SDK's own chain
secret_access_key = {{ file = "secret" }}

"""


def main() -> None:
    """Run with the configuration that is named, or with local servers."""
    if len(sys.argv) > 1:
        with Kms.from_config(sys.argv[1]) as kms:
            show_opened(kms, seal(kms))
    else:
        run_locally()


def run_locally() -> None:
    """Two servers, a configuration for them, and an outage."""
    from kms_core.testing.servers import AwsServer

    with AwsServer() as europe, AwsServer() as america, tempfile.TemporaryDirectory() as folder:
        regions = {"eu-central-1": europe, "us-east-1": america}
        tables = [
            INSTANCE.format(name=region, key=server.create_key(region), url=server.endpoint_url)
            for region, server in regions.items()
        ]
        with Kms.from_config(write_configuration(Path(folder), "".join(tables))) as kms:
            envelope = seal(kms)
            show_opened(kms, envelope)
            europe.cut()
            kms.forget()  # the data key: as long as it is cached, nobody is asked
            print("eu-central-1 is cut off")
            show_opened(kms, envelope)
            print(f"health: {kms.health().status}")


def write_configuration(folder: Path, tables: str) -> Path:
    """The file, beside the credentials that it refers to: they stand in no configuration."""
    (folder / "id").write_text("anybody")
    (folder / "secret").write_text("anything")
    file = folder / "kms.toml"
    file.write_text(tables)
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
