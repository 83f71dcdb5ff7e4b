"""Raw copies of keys in the memory of another process, counted from outside.

``python -m tests.memory_scan KIND`` (aws, azure, google, softhsm or local) starts such a service,
lets a child of its own seal and open with it, and prints how many copies are left at each stage.
The figures of docs/threat-model.md come from there.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from attrs import define, frozen

from kms_core.cli.keepers import KINDS, own_environment
from kms_core.envelope import split
from kms_core.header import parse_capsule, parse_message_header

ROOT: Final = Path(__file__).parents[1]
PATIENCE: Final = 120.0

#: Nobody looks after the services in the background, and a slow machine is no outage.
POLICIES: Final = """
[calls]
deadline = "60s"
attempt_timeout = "60s"
hedge_after = "60s"
"""


def cannot_scan() -> str | None:
    """Why another process's memory cannot be read here, or ``None``."""
    with child() as idle:
        try:
            next(regions(idle.pid))
            with open(f"/proc/{idle.pid}/mem", "rb") as memory:  # noqa: PTH123
                memory.seek(next(regions(idle.pid))[0])
                memory.read(1)
        except (OSError, StopIteration) as exc:
            return f"the memory of a process cannot be read here: {exc!r}"
    return None


def regions(pid: int) -> Iterator[tuple[int, int]]:
    """Start and end of everything that the process can write: secrets can be nowhere else."""
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
        span, access = line.split()[:2]
        if access.startswith("rw"):
            start, end = (int(part, 16) for part in span.split("-"))
            yield start, end


def count(pid: int, needles: Mapping[str, Collection[bytes]]) -> dict[str, int]:
    """How often a needle stands in the process's memory, in any of its spellings."""
    found = dict.fromkeys(needles, 0)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        for start, end in regions(pid):
            memory.seek(start)
            try:
                content = memory.read(end - start)
            except OSError:  # a device's
                continue
            for name, spellings in needles.items():
                found[name] += sum(map(content.count, spellings))
    return found


# --- which keys ----------------------------------------------------------------------------------


@frozen
class Sealed:
    """An envelope with its keys, derived here by docs/format.md, section 2, and nothing else."""

    envelope: bytes
    dek: bytes

    def needles(self, name: str) -> dict[str, Collection[bytes]]:
        """Everything that is looked for, by what it is called."""
        capsule_bytes, body = split(self.envelope)
        capsule, message = parse_capsule(capsule_bytes), parse_message_header(body)
        bind = bytes((capsule.suite,)) + capsule.scope.encoded
        message_key = expand(self.dek, b"message", bind)
        subkey = expand(message_key, b"oneshot", bytes((message.kind,)) + message.salt)
        return {
            f"{name} DEK": [self.dek],
            f"{name} DEK in base64": in_base64(self.dek),
            f"{name} K_cap": [expand(self.dek, b"capsule", bind)],
            f"{name} K_msg": [message_key],
            f"{name} K_sub": [subkey],
        }


def in_base64(key: bytes) -> set[bytes]:
    """The text in which a key stands in requests and answers, alone or behind something else."""
    spellings = set()
    for before in range(3):
        bits, skipped = 8 * (before + len(key)), -(-8 * before // 6)
        for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
            spellings.add(encode(bytes(before) + key)[skipped : bits // 6])
    return spellings


def expand(key: bytes, label: bytes, info: bytes) -> bytes:
    """The first 32 bytes of HKDF-Expand-SHA-512."""
    block = b"kms_core/v1/" + label + b"\x00" + info + b"\x01"
    return hmac.digest(key, block, hashlib.sha512)[:32]


# --- the process that is looked at ---------------------------------------------------------------


@define
class Child:
    """A process that does as it is told, one step at a time, and stands still in between."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def does(self, step: str, **arguments: str) -> str:
        """What it answers when the step is done."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"step": step, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the child ended in {step}: {self.process.wait(PATIENCE)}"
        return str(json.loads(line)["answer"])


@contextmanager
def child() -> Iterator[Child]:
    """A fresh interpreter that runs ``tests.memory_child``; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.memory_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_search_path()])},
    )
    try:
        with process:
            yield Child(process)
            assert process.stdin is not None
            process.stdin.close()
            process.wait(PATIENCE)
    finally:
        process.kill()


def _search_path() -> list[str]:
    path = os.environ.get("PYTHONPATH")
    return path.split(os.pathsep) if path else []


# --- looking -------------------------------------------------------------------------------------


def stages(config: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """What is found in a process that seals and opens: while it works, and afterwards.

    ``sealed`` keys are those of an envelope it made, ``opened`` ones those of another's.
    """
    with child() as looked_at, child() as other:
        for each in (looked_at, other):
            each.does("start", config=str(config))
            # The dynamic linker saves all registers, keys in them too, to the stack when a function
            # is called for the first time; this is about what stays.
            each.does("open", envelope=each.does("seal"))
            each.does("forget")
        theirs = other.does("seal")
        mine = looked_at.does("seal")
        looked_at.does("open", envelope=theirs)
        needles: dict[str, Collection[bytes]] = {}
        for name, envelope in {"sealed": mine, "opened": theirs}.items():
            dek = bytes.fromhex(other.does("reveal", envelope=envelope))
            needles |= Sealed(base64.b64decode(envelope), dek).needles(name)
        yield "working", count(looked_at.pid, needles)
        for step in ("forget", "close"):
            looked_at.does(step)
            yield step, count(looked_at.pid, needles)


@contextmanager
def service(kind: str) -> Iterator[Path]:
    """The configuration of a client with one key service, which runs in this process."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kms-")))
        stack.enter_context(own_environment())
        keeper = next(each for each in KINDS if each.name == kind).start(stack, folder)
        config = folder / "kms.toml"
        config.write_text(POLICIES + keeper.table, encoding="utf-8")
        yield config


def main() -> None:
    """Print one line for each stage."""
    with service(sys.argv[1]) as config:
        for stage, found in stages(config):
            copies = ", ".join(f"{name}: {number}" for name, number in found.items() if number)
            print(f"{stage}: {copies or 'nothing'}")  # noqa: T201


if __name__ == "__main__":
    main()
