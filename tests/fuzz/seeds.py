"""Writes what mutation starts from: ``python -m tests.fuzz.seeds`` in the project's root.

The same input gives the same bytes.  Other files in the folders, those that once were faults, stay
as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from kms_core import Context
from kms_core.header import parse_capsule
from kms_core.inspection import armor
from tests.fuzz.known import CONTEXT, URIS, crowded, sealed
from tests.fuzz.targets import CORPUS

Named = Iterator[tuple[str, bytes]]


def envelopes() -> Named:
    """K || M and K || S; M and S alone; K as it is after a rewrap."""
    for item in sealed():
        for kind, body in item.bodies.items():
            yield f"{item.name}-{kind}", item.capsules["plain"] + body
            if item.name == "scoped":
                yield f"{kind}-alone", body
        yield f"{item.name}-rewrapped", item.capsules["full"] + item.bodies["message"]


def crowd() -> Named:
    """Many recipients, none of them genuine."""
    for number, capsule in enumerate(crowded()):
        item = sealed()[0 if number == 0 else 2]
        yield f"crowd-{number}", capsule + item.bodies["message"]


def capsules() -> Named:
    """K alone."""
    for item in sealed():
        for kind, capsule in item.capsules.items():
            yield f"{item.name}-{kind}", capsule


def message_headers() -> Named:
    """M alone."""
    for kind, body in sealed()[0].bodies.items():
        if kind.startswith("message"):
            yield kind, body


def stream_headers() -> Named:
    """The start of S."""
    for kind, body in sealed()[0].bodies.items():
        if kind.startswith("stream"):
            yield kind, body[:200]


def texts() -> Named:
    """The text form of both, in every length modulo three."""
    for item in sealed():
        for kind in ("message", "message-empty", "stream-empty"):
            yield f"{item.name}-{kind}", armor(item.capsules["plain"] + item.bodies[kind]).encode()
    for size in range(4):
        yield f"{size}-bytes", armor(b"\xff\xfe\xfd"[:size]).encode()


def contexts() -> Named:
    """Maps: empty, ordinary, full, and with text beyond ASCII."""
    made = {
        "empty": {},
        "ordinary": dict(CONTEXT),
        "empty-value": {"a": "", "b": ""},
        "many-pairs": {f"{number:02}": "x" for number in range(64)},
        "prefixes": {"a": "1", "aa": "2", "ab": "3"},
        "unicode": {"\u00e9": "e\u0301", "\U0001f511": "\uffff", "\x00": "\n"},
        "large": {"k": "v" * 8183},
    }
    for name, pairs in made.items():
        yield name, Context(pairs).encoded


def key_uris() -> Named:
    """One of each scheme, and the longest."""
    made = {
        "local": URIS[0],
        "aws": "aws-kms://arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "gcp": "gcp-kms://projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/7",
        "pkcs11": "pkcs11:token=main;object=kek%20one;type=secret-key",
        "longest": "x:" + "y" * 1022,
    }
    for name, uri in made.items():
        yield name, uri.encode()


def puts() -> Named:
    """The first capsule of a key, and the one that follows it."""
    for item in sealed():
        plain, full = item.capsules["plain"], item.capsules["full"]
        key_id = parse_capsule(plain).key_id
        yield f"{item.name}-first", key_id + len(plain).to_bytes(4, "big") + plain
        yield f"{item.name}-next", key_id + len(full).to_bytes(4, "big") + full + plain


def configurations() -> Named:
    """Every table and key, in files that are right."""
    yield "smallest", b'[instances.a]\nprovider = "local"\nkey = "k"\n'
    yield "everything", _EVERYTHING.encode()
    yield "threshold", _THRESHOLD.encode()


_EVERYTHING: Final = """\
plugins = ["audit-log"]
[instances.main]
provider = "aws-kms"
key = "alias/main"
domain = "aws:eu-west-1"
required = true
number = 3
switch = true
ratio = 0.25
path = "keys/main"
wait = "500ms"
pin = { env = "PIN" }
names = ["a", "b"]
text = "text"
[instances.main.breaker]
failure_threshold = 3
[instances.escrow]
provider = "local"
key = "k"
[instances.signer]
provider = "local"
key = "s"
purpose = "sign"
[envelope]
recipients = ["main", "escrow"]
policy = "any"
min_recipients = 1
key_context = ["tenant"]
straggler_wait = 0.5
allow_weaker = true
require_pq = false
min_threshold = 1
allow_public_key_wraps = true
capsules = "capsules.sqlite"
[breaker]
failure_threshold = 5
window = "1m"
recovery_timeout = 60
max_recovery_timeout = "10m"
success_threshold = 2
minimum_failure_ratio = 0.1
timeouts_in_a_row = 3
[calls]
deadline = "10s"
attempt_timeout = "3s"
attempts = 2
hedge_after = 1.0
max_concurrency = 32
health_timeout = "2s"
"""

_THRESHOLD: Final = """\
[instances]
a = { provider = "local", key = "k" }
b = { provider = "local", key = "k", pin = { file = "pin" } }
c.provider = "memory"
c.key = "k"
[envelope]
policy = "2 of 3"
"""

FOLDERS: Final[Mapping[str, Callable[[], Named]]] = {
    "capsule": capsules,
    "check_put": puts,
    "config": configurations,
    "context": contexts,
    "crowd": crowd,
    "envelope": envelopes,
    "key_uri": key_uris,
    "message_header": message_headers,
    "stream_header": stream_headers,
    "unarmor": texts,
}


def main() -> None:
    """Write every file."""
    for name, made in FOLDERS.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in made():
            (folder / file).write_bytes(data)


if __name__ == "__main__":
    main()
