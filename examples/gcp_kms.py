"""Seal to two keys of Google Cloud KMS, rotate one, lose the service for a while, and open again.

    python examples/gcp_kms.py              against a local server that it starts itself
    python examples/gcp_kms.py kms.toml     with the keys of your own configuration

The local server needs ``pip install 'kms-core[demo]'``; nothing leaves the machine then.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from kms_core import AllInstancesFailed, Kms

CONTEXT = {"tenant": "42"}
MESSAGE = b"4111 1111 1111 1111"

INSTANCE = """\
[instances.{name}]
provider = "gcp-kms"
key = "{key}"
endpoint = "{endpoint}"     # leave these two out to ask Google
insecure = true                 # no TLS, which is refused beyond this machine
offline_wrap = "{offline_wrap}"

"""


def main() -> None:
    """Run with the configuration that is named, or with a local server."""
    if len(sys.argv) > 1:
        with Kms.from_config(sys.argv[1]) as kms:
            show_opened(kms, seal(kms))
    else:
        run_locally()


def run_locally() -> None:
    """A server with two keys, a configuration for them, a rotation and an outage."""
    from kms_core.testing.servers import Failure, GcpServer

    with GcpServer() as google, tempfile.TemporaryDirectory() as folder:
        symmetric = google.create_key("app")
        rsa = google.create_key("archive", purpose="ASYMMETRIC_DECRYPT")
        tables = INSTANCE.format(
            name="app", key=symmetric, endpoint=google.endpoint, offline_wrap="never"
        ) + INSTANCE.format(
            name="archive", key=rsa, endpoint=google.endpoint, offline_wrap="fallback"
        )
        file = Path(folder, "kms.toml")
        file.write_text(tables)
        with Kms.from_config(file) as kms:
            before = seal(kms)
            google.add_version(symmetric)
            kms.forget()  # the data key: as long as it is cached, nobody is asked
            print("the symmetric key was rotated")
            after = seal(kms)
            google.panel.fail(Failure.REFUSE)
            kms.forget()
            print("the service is away")
            meanwhile = seal(kms)
            show_closed(kms, meanwhile)
            google.panel.heal()
            print("the service is back")
            for name in ("app", "archive"):
                kms.force_breaker(name, "closed")  # rather than wait until it is tried again
            for envelope in (before, after, meanwhile):
                show_opened(kms, envelope)


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


def show_closed(kms: Kms, envelope: bytes) -> None:
    """Without the service nobody can open it, and the error says why."""
    try:
        kms.open(envelope, context=CONTEXT)
    except AllInstancesFailed as exc:
        print(f"not opened meanwhile: {', '.join(attempt.error.code for attempt in exc.attempts)}")
    else:
        sys.exit("the envelope opened without its keys")


if __name__ == "__main__":
    main()
