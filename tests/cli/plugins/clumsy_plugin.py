"""A plugin that loads, and fails when it is to add its commands."""

from __future__ import annotations

from typing import Any

from kms_core import hookimpl


@hookimpl
def kms_register_commands(commands: Any) -> None:
    """Fail."""
    raise LookupError("nothing\nto add")
