"""What it takes to start: time and memory of fresh processes, several starts of each in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import evolve, frozen

from benchmarks.remote import ROOT, SubjectFailed
from benchmarks.results import Results, Row, Spread

SUITE: Final = "start-up"
TIME: Final = "time its statements take"
MEMORY: Final = "memory at its peak"
CRYPTOGRAPHY: Final = "cryptography's AESGCM, used"
CACHED_KEYS: Final = 1000
_PATIENCE: Final = 60.0
_UNCOMPILED: Final = "PYTHONDONTWRITEBYTECODE"
_STATUS: Final = Path("/proc/self/status")

_TOOLS: Final = "import json, sys, time\n"
_CIPHER: Final = """
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
AESGCM(bytes(32)).encrypt(bytes(12), b"", None)
"""
_MEASURED: Final = """
began = time.perf_counter()
{program}
milliseconds = (time.perf_counter() - began) * 1e3
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps([milliseconds, peak / 1024]))
"""
_WITH_KEYS: Final = """
from kms_core import CachePolicy, EnvelopePolicy, InstanceConfig, Kms, Secret, Settings
provider, options, keys = json.loads(sys.argv[1])
if "pin" in options:
    options["pin"] = Secret(options["pin"])
kms = Kms(Settings(
    {"only": InstanceConfig(provider, options)},
    envelope=EnvelopePolicy(key_context=("tenant",)),
    cache=CachePolicy(max_entries=keys),
))
for tenant in range(keys):
    kms.seal(b"", {"tenant": str(tenant)})
held = kms.cache_info().sealing.keys
if held != keys:
    raise SystemExit(f"{held} keys are cached, not {keys}")
"""


@frozen
class Program:
    """What a fresh process does before it is looked at."""

    name: str
    python: str
    source: str
    arguments: tuple[str, ...] = ()


def statement(name: str, source: str, python: str = sys.executable) -> Program:
    """A program that has used the cipher before it does this, as everybody who encrypts has."""
    return Program(name, python, _TOOLS + _CIPHER + _MEASURED.format(program=source))


@contextmanager
def programs(
    peers: Mapping[str, tuple[str, str]], wanted: Callable[[str], bool]
) -> Iterator[list[Program]]:
    """Those that are wanted; ``peers`` by name, with interpreter and first statement."""
    plugins = ("kms_aws", "kms_azure", "kms_gcp", "kms_local", "kms_pkcs11")
    simple = [
        Program("bare Python", sys.executable, _TOOLS + _MEASURED.format(program="")),
        Program(CRYPTOGRAPHY, sys.executable, _TOOLS + _MEASURED.format(program=_CIPHER)),
        statement("import kms_core", "import kms_core"),
        statement("from kms_core import Kms", "from kms_core import Kms"),
        *(statement(f"import {name}", f"import {name}") for name in plugins),
        *(
            statement(f"{name}: {source}", source, python)
            for name, (python, source) in peers.items()
        ),
    ]
    cached = (("local", 1, _local), ("local", CACHED_KEYS, _local), ("pkcs11", CACHED_KEYS, _token))
    with ExitStack() as stack:
        yield [
            *(program for program in simple if wanted(f"{SUITE}/{program.name}")),
            *(
                program
                for provider, keys, options in cached
                if wanted(f"{SUITE}/{with_keys(provider, keys)}")
                for program in _with_keys(provider, keys, stack.enter_context(options()))
            ),
        ]


def with_keys(provider: str, keys: int) -> str:
    """What such a process is called."""
    return f"one {provider} instance, {keys:,} cached key{'s' if keys > 1 else ''}"


def _with_keys(provider: str, keys: int, options: Mapping[str, Any] | None) -> list[Program]:
    if options is None:
        return []
    arguments = (json.dumps([provider, options, keys]),)
    program = statement(with_keys(provider, keys), _WITH_KEYS)
    return [evolve(program, arguments=arguments)]


@contextmanager
def _local() -> Iterator[Mapping[str, Any]]:
    from kms_local import KeyStore

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "keys")
        KeyStore.create(path)
        yield {"path": str(path)}


@contextmanager
def _token() -> Iterator[Mapping[str, Any] | None]:
    """A SoftHSM token, or nothing where there is none."""
    from kms_core.testing.servers import SoftHsm

    if SoftHsm.find() is None:
        yield None
        return
    with SoftHsm() as token:
        token.create_key("key")
        yield {
            "key": "key",
            "module": str(token.module),
            "token": token.token,
            "pin": token.pin,
            "protection": "software",
        }


def run(
    started: list[Program],
    starts: int,
    results: Results,
    failed: Callable[[str], None],
) -> None:
    """Start them all so many times in turn; nothing where the system does not tell memory."""
    if not _STATUS.exists():
        return
    taken: dict[str, list[tuple[float, float]]] = {}
    for number in range(starts + 1):
        for program in started:
            try:
                measured = measure(program)
            except SubjectFailed as exc:
                failed(str(exc))
            else:
                if number:  # the first start compiles what no installer has compiled
                    taken.setdefault(program.name, []).append(measured)
    for name, starts_of_it in taken.items():
        times, peaks = zip(*starts_of_it, strict=True)
        results.add(Row(SUITE, TIME, name, Spread.of(times), "ms"))
        results.add(Row(SUITE, MEMORY, name, Spread.of(peaks), "MiB"))


def measure(program: Program) -> tuple[float, float]:
    """Milliseconds, and mebibytes at the peak, of one start."""
    done = subprocess.run(  # noqa: S603  our own programs
        [program.python, "-c", program.source, *program.arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != _UNCOMPILED},
        timeout=_PATIENCE,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SubjectFailed(f"{program.name}: {lines[-1] if lines else done.returncode}")
    milliseconds, peak = json.loads(done.stdout)
    return milliseconds, peak
