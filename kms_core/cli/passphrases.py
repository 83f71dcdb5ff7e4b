"""Passphrases: from a variable, or typed at the terminal."""

from __future__ import annotations

import os
import sys

import click

from kms_core.errors import InvalidRequest
from kms_core.types import Secret


def from_variable(name: str) -> Secret:
    """What an environment variable holds; raises ``InvalidRequest`` if that is nothing."""
    value = os.environ.get(name)
    if not value:
        raise InvalidRequest(f"environment variable {name} is not set: it is the passphrase")
    return Secret(value)


def given_or_asked_for(variable: str | None) -> Secret:
    """From the variable, or from whoever sits at the terminal."""
    if variable is not None:
        return from_variable(variable)
    if not at_a_terminal():
        raise click.UsageError(
            "no terminal to ask for the passphrase on; give --passphrase-env VAR"
        )
    return Secret(click.prompt("Passphrase", hide_input=True, err=True))


def at_a_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin is not None and sys.stdin.isatty()
