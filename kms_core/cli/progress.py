"""How far a long copy is, for whoever watches."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

FROM_BYTES: Final = 32 << 20  # less is done before a bar could be read


class Meter:
    """Counts bytes, and draws a bar on stderr once they are many and stderr is a terminal.

    Calls must not overlap; they may come from different threads.
    """

    def __init__(self, total: int | None, *, quiet: bool = False) -> None:
        """``total`` is ``None`` where only the end will tell; ``quiet`` never draws."""
        self.done = 0
        self._total = total
        self._quiet = quiet or sys.stderr is None or not sys.stderr.isatty()
        self._bar: tuple[Progress, TaskID] | None = None
        self._drawing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._drawing.close()

    def __call__(self, size: int) -> None:
        """So many more bytes are done."""
        self.done += size
        if self._quiet or max(self.done, self._total or 0) <= FROM_BYTES:
            return
        if self._bar is None:
            self._bar = self._start()
        progress, task = self._bar
        progress.update(task, completed=self.done)

    def _start(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        progress = Progress(
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # which carries the output itself
            redirect_stderr=False,
        )
        self._drawing.enter_context(progress)
        return progress, progress.add_task("", total=self._total)
