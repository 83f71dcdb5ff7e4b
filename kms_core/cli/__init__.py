"""The command ``kms``.  Importing this package needs nothing beyond the core itself.

Commands are imported when they are called for, and each of them imports what it needs: see
``kms_core.cli.group`` for the table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final, NoReturn

from kms_core.cli.exits import ExitCode, say

_EXTRA: Final = ("click", "rich")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``kms`` with these arguments (default: the process's own) and exit with its code."""
    if not _extra_is_installed():
        say("the command line needs its extra: pip install 'kms-core[cli]'")
        sys.exit(ExitCode.USAGE)
    from kms_core.cli.group import kms

    kms.main(arguments, prog_name="kms")


def _extra_is_installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in _EXTRA)
    except ImportError:
        return False
