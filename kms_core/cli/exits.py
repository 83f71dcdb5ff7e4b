"""What a failed command says, in one line on stderr, and which code it exits with."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import IntEnum
from typing import Final

from kms_core.errors import (
    AllInstancesFailed,
    BreakerOpen,
    ConfigError,
    EnvelopeError,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
    KMSError,
    NoMatchingRecipient,
    RewrapConflict,
    Throttled,
    Unavailable,
    UnsupportedOperation,
)


class ExitCode(IntEnum):
    """The exit codes of ``kms``, which scripts may rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    INTEGRITY = 4
    INTERRUPTED = 130  # as the shell reports a process that SIGINT ended
    BROKEN_PIPE = 141  # as the shell reports one that SIGPIPE ended


MEANINGS: Final = {
    ExitCode.OK: "done, also when degraded (said on stderr)",
    ExitCode.FAILED: "failed: permission, key state, conflict, input or output",
    ExitCode.USAGE: "usage or configuration",
    ExitCode.UNAVAILABLE: "no key service could be reached",
    ExitCode.INTEGRITY: "integrity or format: altered, foreign, wrong context",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
    ExitCode.BROKEN_PIPE: "nobody reads the output any more",
}


class SpoiltOutput(IntegrityError):
    """A fault in a stream, found after the authentic part before it was written."""

    def __init__(self, written: int) -> None:
        super().__init__(
            f"the stream is altered or cut short after {written} bytes: discard what was written"
        )


class InvalidSignature(IntegrityError):
    """A signature that does not verify."""

    def __init__(self, key_uri: str) -> None:
        super().__init__(f"the signature is not valid: it is not one of this input by {key_uri}")


_OUTAGE: Final = (Unavailable, Throttled, BreakerOpen)
#: The first class that fits decides; what fits none has FAILED.
_CODES: Final[tuple[tuple[type[KMSError], ExitCode], ...]] = (
    (RewrapConflict, ExitCode.FAILED),
    (ConfigError, ExitCode.USAGE),
    (InvalidRequest, ExitCode.USAGE),
    (UnsupportedOperation, ExitCode.USAGE),
    *((kind, ExitCode.UNAVAILABLE) for kind in _OUTAGE),
    (EnvelopeError, ExitCode.INTEGRITY),
    (InvalidCiphertext, ExitCode.INTEGRITY),
)
#: What to do next, where the message itself cannot know that it is read at a prompt.
_HINTS: Final[tuple[tuple[type[KMSError], str], ...]] = (
    (NoMatchingRecipient, ""),
    (SpoiltOutput, ""),
    (InvalidSignature, ""),
    (RewrapConflict, "run it again"),
    (IntegrityError, "give each --context it was made with"),
    (InvalidCiphertext, "give each --context it was made with"),
    (AllInstancesFailed, "`kms health` shows each instance"),
)


def exit_code(error: KMSError) -> ExitCode:
    """The code for an error.  One member of a group that is an outage makes the group one."""
    if isinstance(error, AllInstancesFailed):
        outage = any(isinstance(member, _OUTAGE) for member in error.exceptions)
        return ExitCode.UNAVAILABLE if outage else ExitCode.FAILED
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)


def complaint(error: KMSError) -> str:
    """The error's message, with what to do next where that helps."""
    hint = next((hint for kind, hint in _HINTS if isinstance(error, kind)), "")
    return f"{error}; {hint}" if hint else str(error)


def say(text: str) -> None:
    """One line on stderr, whatever ``text`` holds."""
    if sys.stderr is not None:  # closed by whoever started us: then nobody listens
        with suppress(OSError):
            sys.stderr.write(f"kms: {printable(' '.join(text.split()))}\n")
            sys.stderr.flush()


def printable(text: str) -> str:
    """``text`` with everything that could steer a terminal made visible.

    Key URIs, contexts and services' messages come from others.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
