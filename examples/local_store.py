"""Seal under a key in a file, rotate it, and see what the file is worth.

    python examples/local_store.py              with a key store of its own
    python examples/local_store.py kms.toml     with your own configuration

Needs ``pip install 'kms-core[local]'``; nothing leaves the machine.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from kms_core import AllInstancesFailed, Kms
from kms_local import KeyStore

CONTEXT = {"tenant": "42"}
MESSAGE = b"4111 1111 1111 1111"

CONFIGURATION = """\
[instances.here]
provider = "local"
path = "kms-local.keys"
"""


def main() -> None:
    """Run with the configuration that is named, or with a store made for this."""
    if len(sys.argv) > 1:
        with Kms.from_config(sys.argv[1]) as kms:
            show_opened(kms, seal(kms))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "kms-local.keys")
        keys = KeyStore.create(store)
        configuration = Path(folder, "kms.toml")
        configuration.write_text(CONFIGURATION)
        with Kms.from_config(configuration) as kms:
            envelope = seal(kms)
            show_opened(kms, envelope)
            keys.rotate("default")
            kms.forget()  # data keys are cached, and this one is wrapped by the version before
            print("the key has a new version")
            seal(kms)
            show_opened(kms, envelope)
            lose(kms, store, envelope)


def seal(kms: Kms) -> bytes:
    """The data key is wrapped by the newest version of the key in the file."""
    envelope = kms.seal(MESSAGE, CONTEXT)
    for recipient in kms.inspect(envelope).recipients:
        print(f"sealed to {recipient.key_uri}")
    return envelope


def show_opened(kms: Kms, envelope: bytes) -> None:
    """With the same context, whichever version it was."""
    print(f"opened: {kms.open(envelope, CONTEXT).decode()}")


def lose(kms: Kms, store: Path, envelope: bytes) -> None:
    """The file is all there is: without it, and without another recipient, nothing opens."""
    store.unlink()
    kms.forget()  # what is cached opens a while longer
    try:
        kms.open(envelope, CONTEXT)
    except AllInstancesFailed:
        print("without the file nothing opens: keep a copy, or a second recipient")


if __name__ == "__main__":
    main()
