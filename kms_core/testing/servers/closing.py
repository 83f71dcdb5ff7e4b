"""What all servers have in common: they run when made, and until they are closed."""

from __future__ import annotations

import abc
from types import TracebackType
from typing import Self


class Closed(abc.ABC):
    """``with`` closes it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop.  Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
