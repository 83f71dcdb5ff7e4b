"""A process that repairs a folder of sealed files and tells of every step, so as to be killed.

``python -m tests.kill_repair FOLDER`` writes a byte to stdout for each call within the modules that
the repair consists of.  The clients here have two local key stores, and the second one can be
switched off by a file, for all processes at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from attrs import frozen

from kms_core import Context, EnvelopePolicy, InstanceConfig, Kms, Settings, Unavailable, hookimpl
from kms_core.repair import FileSource, RepairQueue
from kms_local import KeyStore
from kms_local.provider import LocalProvider, LocalSettings
from tests.support import NO_CACHE, PATIENT, found, providers_module

STEPS_IN = ("kms_core/repair.py", "kms_core/rewrap.py", "kms_core/files.py")
QUEUE = "queue.sqlite"
SWITCH = "second-is-down"


class Switched(LocalProvider):
    """Cannot wrap while the file ``second-is-down`` lies beside a key store named ``second``."""

    def __init__(self, settings: LocalSettings) -> None:
        super().__init__(settings)
        self._switch = settings.path.with_name(f"{settings.path.name}-is-down")

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Any:
        """As the local provider does, if at all."""
        if self._switch.exists():
            raise Unavailable("switched off")
        return super().encrypt(key_id, plaintext, context)


@frozen
class Place:
    """A folder with two key stores, sealed files and the queue."""

    folder: Path

    def prepare(self) -> None:
        """Make the key stores."""
        for name in ("first", "second"):
            KeyStore.create(self.folder / name)

    def client(self, *recipients: str) -> Kms:
        """A client of these stores, or of both."""
        names = recipients or ("first", "second")
        instances = {name: InstanceConfig("local", {"path": self.folder / name}) for name in names}
        settings = Settings(instances, EnvelopePolicy(), calls=PATIENT, cache=NO_CACHE)
        return Kms(settings, plugins=[found("local", providers_module(Switched))])

    def queue(self, kms: Kms, **options: Any) -> RepairQueue:
        """The queue that all processes share, as fast as it can be."""
        return RepairQueue(kms, FileSource(), path=self.folder / QUEUE, per_second=1e6, **options)


def step_by_step(stream: int) -> Callable[[FrameType, str, object], None]:
    """A profiler that tells of every call of and by the modules in question."""

    def tell(frame: FrameType, event: str, _: object) -> None:
        if event in {"call", "c_call"} and frame.f_code.co_filename.endswith(STEPS_IN):
            os.write(stream, b".")

    return tell


def main() -> None:
    """Repair until nothing is left that may be repaired now."""
    place = Place(Path(sys.argv[1]))
    with place.client() as kms, place.queue(kms) as queue:
        sys.setprofile(step_by_step(sys.stdout.fileno()))
        queue.run()


if __name__ == "__main__":
    main()
