"""Exit codes and the one line on stderr."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_core import errors
from kms_core.cli.exits import MEANINGS, ExitCode, complaint, exit_code, printable, say
from kms_core.types import Attempt

FAILED, USAGE, UNAVAILABLE, INTEGRITY = (
    ExitCode.FAILED,
    ExitCode.USAGE,
    ExitCode.UNAVAILABLE,
    ExitCode.INTEGRITY,
)


def _all_failed(*members: errors.KMSError) -> errors.AllInstancesFailed:
    return errors.AllInstancesFailed("all", [Attempt("x", member, 0.0) for member in members])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.AccessDenied("x"), FAILED),
        (errors.KeyNotFound("x"), FAILED),
        (errors.KeyDisabled("x"), FAILED),
        (errors.ProviderBug("x"), FAILED),
        (errors.PolicyDenied("x"), FAILED),
        (errors.RewrapConflict("x"), FAILED),
        (errors.KMSError("x"), FAILED),
        (errors.ConfigError("x"), USAGE),
        (errors.PluginError("x"), USAGE),
        (errors.InvalidRequest("x"), USAGE),
        (errors.UnsupportedOperation("x"), USAGE),
        (errors.Unavailable("x"), UNAVAILABLE),
        (errors.DeadlineExceeded("x"), UNAVAILABLE),
        (errors.Throttled("x"), UNAVAILABLE),
        (errors.BreakerOpen("x", retry_after=1.0), UNAVAILABLE),
        (errors.FormatError("x"), INTEGRITY),
        (errors.UnsupportedVersion("x"), INTEGRITY),
        (errors.IntegrityError(), INTEGRITY),
        (errors.NoMatchingRecipient(["a://b"]), INTEGRITY),
        (errors.InvalidCiphertext("x"), INTEGRITY),
        (_all_failed(errors.AccessDenied("x"), errors.KeyDisabled("x")), FAILED),
        (_all_failed(errors.AccessDenied("x"), errors.Throttled("x")), UNAVAILABLE),
        (_all_failed(errors.DeadlineExceeded("x")), UNAVAILABLE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_has_its_exit_code(error: errors.KMSError, expected: ExitCode) -> None:
    """The class decides, and one outage among many failures makes them an outage."""
    assert exit_code(error) == expected


def test_every_exit_code_is_explained() -> None:
    """``kms --help`` lists what this table holds."""
    assert set(MEANINGS) == set(ExitCode)


def test_wrong_context_is_suggested_where_it_may_be_the_cause() -> None:
    """An envelope that does not authenticate may lack its context; a foreign one does not."""
    assert "--context" in complaint(errors.IntegrityError())
    assert "--context" in complaint(errors.InvalidCiphertext("x"))
    assert complaint(errors.NoMatchingRecipient(["a://b"])).endswith("a://b")
    assert complaint(errors.KeyNotFound("no such key")) == "no such key"


@given(st.text())
def test_a_complaint_is_one_line_of_visible_text(text: str) -> None:
    """Nothing that a message quotes can break the line or steer a terminal."""
    assert printable(" ".join(text.split())).isprintable()


def test_visible_text_stays_as_it_is() -> None:
    """Only what steers a terminal is spelt out."""
    assert printable("clé 鍵") == "clé 鍵"
    assert printable("\x1b[31m\u202e\udc80") == "\\x1b[31m\\u202e\\udc80"


def test_closed_stderr_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever closed stderr does not listen."""
    monkeypatch.setattr(sys, "stderr", None)
    say("anything")
