"""What a failing file means to the caller: every ``OSError`` leaves through the table below.

What the file *says* (damage, a missing key, a disabled version) is not an ``OSError``; the store
raises the fitting class itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from kms_core import InvalidRequest, KMSError, Unavailable

Doing = Literal["read", "create", "change"]

#: While doing what, which error: the class to raise, and what to do next.
TABLE: Final[Mapping[tuple[Doing, type[OSError]], tuple[type[KMSError], str]]] = {
    ("read", FileNotFoundError): (
        Unavailable,
        "create it with `kms init`, or correct the setting path",
    ),
    ("read", PermissionError): (Unavailable, "run as the user who owns it"),
    ("read", OSError): (Unavailable, "make the setting path name a readable file"),
    ("create", FileExistsError): (
        InvalidRequest,
        "a key store is never overwritten; choose another path",
    ),
    ("create", FileNotFoundError): (InvalidRequest, "create its directory first"),
    ("create", OSError): (Unavailable, "choose a directory that can be written to"),
    ("change", OSError): (Unavailable, "the old content stands; make file and directory writable"),
}


@contextlib.contextmanager
def translated(path: Path, doing: Doing) -> Iterator[None]:
    """Turn an ``OSError`` of the block into the class and advice of ``TABLE``."""
    try:
        yield
    except OSError as exc:
        kind, advice = _row(doing, exc)
        reason = exc.strerror or type(exc).__name__
        raise kind(f"cannot {doing} key store {path}: {reason}; {advice}") from exc


def _row(doing: Doing, error: OSError) -> tuple[type[KMSError], str]:
    """The row of the error's class, or of the nearest class that it is derived from."""
    return next(TABLE[doing, kind] for kind in type(error).__mro__ if (doing, kind) in TABLE)
