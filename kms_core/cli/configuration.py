"""Which configuration a command uses.

Other than the library, the command line reads ``./kms.toml``; but a file in a folder that others
can write to would let them choose our key services, so it must be the user's alone.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from kms_core import config
from kms_core.errors import ConfigError

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_JUDGES_MODES: Final = os.name == "posix"  # elsewhere mode bits say nothing


def find(named: Path | None) -> config.Raw:
    """The file named, else ``./kms.toml``, else what the library finds by itself."""
    if named is not None:
        return config.load(named)
    here = Path(config.FILE_NAME)
    if os.path.lexists(here):
        check_private(here)
        return config.load(here)
    return config.find()


def check_private(file: Path) -> None:
    """Raise ``ConfigError`` unless file and folder are the user's and nobody else may write them.

    Where ``file`` is a link, that goes for both of its ends.
    """
    if not _JUDGES_MODES:
        return
    folders = dict.fromkeys((file.absolute().parent, file.resolve().parent))
    for path in (*folders, file):
        _check_private(path, file)


def _check_private(path: Path, file: Path) -> None:
    instead = f"or name a configuration with --config; {file} was not read"
    try:
        status = path.stat()
    except OSError as exc:
        raise ConfigError(f"cannot read configuration {file}: {exc.strerror}") from exc
    if status.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to {_user(status.st_uid)}, not to you: own it {instead}")
    if status.st_mode & _OTHERS_WRITE:
        who = "everybody" if status.st_mode & stat.S_IWOTH else "its group"
        raise ConfigError(f"{path} is writable by {who}: run `chmod go-w {path}` {instead}")


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
