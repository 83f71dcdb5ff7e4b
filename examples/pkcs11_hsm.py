"""Seal under a key in a token, pull the token out, put it back, and open.

    python examples/pkcs11_hsm.py              on a SoftHSM token of its own
    python examples/pkcs11_hsm.py kms.toml     with the key of your own configuration

SoftHSM is `apt-get install softhsm2`; the rest is ``pip install 'kms-core[demo]'``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kms_core import AllInstancesFailed, Kms

if TYPE_CHECKING:
    from kms_core.testing.servers import SoftHsm

CONTEXT = {"tenant": "42"}
MESSAGE = b"4111 1111 1111 1111"

CONFIGURATION = """\
[instances.hsm]
provider = "pkcs11"
module = "{module}"
token = "{token}"
key = "app-kek"
pin = {{ file = "pin" }}
protection = "software"     # leave this out for a real one

[instances.signer]
provider = "pkcs11"
module = "{module}"
token = "{token}"
key = "app-signer"
pin = {{ file = "pin" }}
purpose = "sign"
"""


def main() -> None:
    """Run with the configuration that is named, or on a token made for this."""
    if len(sys.argv) > 1:
        with Kms.from_config(sys.argv[1]) as kms:
            seal_and_open(kms)
        return
    from kms_core.testing.servers import SoftHsm

    try:
        token = SoftHsm()
    except FileNotFoundError as exc:
        print(exc, file=sys.stderr)
        sys.exit(2)
    with token, tempfile.TemporaryDirectory() as folder:
        token.create_key("app-kek", "AES")
        token.create_key("app-signer", "EC")
        with Kms.from_config(write_configuration(Path(folder), token)) as kms:
            envelope = seal_and_open(kms)
            sign(kms)
            lose_the_token(kms, token, envelope)


def write_configuration(folder: Path, token: SoftHsm) -> Path:
    """The file, beside the PIN that it refers to: it stands in no configuration."""
    (folder / "pin").write_text(token.pin)
    file = folder / "kms.toml"
    file.write_text(CONFIGURATION.format(module=token.module, token=token.token))
    return file


def seal_and_open(kms: Kms) -> bytes:
    """The data key is wrapped by the token, and unwrapped by it again."""
    envelope = kms.seal(MESSAGE, CONTEXT)
    for recipient in kms.inspect(envelope).recipients:
        print(f"sealed to {recipient.key_uri}")
    print(f"opened again: {kms.open(envelope, CONTEXT).decode()}")
    return envelope


def sign(kms: Kms) -> None:
    """The private key never leaves the token; verifying needs the public one only."""
    signature = kms.sign(MESSAGE)
    print(f"signed with {signature.algorithm} by {signature.key_uri}")
    print(f"valid: {kms.verify(MESSAGE, signature)}, altered: {kms.verify(b'altered', signature)}")


def lose_the_token(kms: Kms, token: SoftHsm, envelope: bytes) -> None:
    """An outage while it is away; no restart once it is back."""
    token.remove_token()
    kms.forget()  # the data key: as long as it is cached, the token is not asked
    try:
        kms.open(envelope, CONTEXT)
    except AllInstancesFailed:
        print("the token is gone, and so is access")
    token.restore_token()
    time.sleep(0.5)  # the module is asked to look again at most so often
    print(f"the token is back, and the envelope opens: {kms.open(envelope, CONTEXT).decode()}")


if __name__ == "__main__":
    main()
