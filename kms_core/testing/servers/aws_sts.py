"""STS as far as roles are assumed: temporary credentials, which KMS takes as long as they last."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from attrs import evolve

from kms_core.testing.servers.aws_signature import Credentials
from kms_core.testing.servers.aws_wire import Json, Refusal, invalid

SESSION_SECONDS: Final = 3600
MIN_SESSION_SECONDS: Final = 900
MAX_SESSION_SECONDS: Final = 43200

_VERSION: Final = "2011-06-15"
_ROLE: Final = re.compile(
    r"arn:aws:iam::(?P<account>\d{12}):role/(?:.*/)?(?P<name>[\w+=,.@-]{1,64})"
)
_SESSION_NAME: Final = re.compile(r"[\w+=,.@-]{2,64}")
_EXTERNAL_ID: Final = re.compile(r"[\w+=,.@:/-]{2,1224}")
_NUMBER: Final = re.compile(r"\d{1,6}")


class Sessions:
    """Whose requests are taken: those of the account's user, and of roles that were assumed.

    Every role exists and trusts everybody who has credentials.
    """

    def __init__(self, user: Credentials) -> None:
        self._known: dict[str, Credentials] = {user.access_key_id: user}

    def find(self, access_key_id: str) -> Credentials | None:
        """The credentials of this id, which may have expired."""
        return self._known.get(access_key_id)

    def expire(self) -> None:
        """End all sessions there are now."""
        for credentials in list(self._known.values()):
            if credentials.session_token is not None:
                self._known[credentials.access_key_id] = evolve(credentials, expires=0.0)

    def assume_role(self, asked: Mapping[str, str]) -> Json:
        """``AssumeRole``: a new session."""
        if asked.get("Version") != _VERSION:
            raise Refusal("UnknownOperationException", "There is no such version of STS.")
        role = _matching(_ROLE, asked, "RoleArn")
        session = _matching(_SESSION_NAME, asked, "RoleSessionName")[0]
        if "ExternalId" in asked:
            _matching(_EXTERNAL_ID, asked, "ExternalId")
        credentials = _temporary(_duration(asked))
        self._known[credentials.access_key_id] = credentials
        account, name = role["account"], role["name"]
        return {
            "AssumedRoleUser": {
                "Arn": f"arn:aws:sts::{account}:assumed-role/{name}/{session}",
                "AssumedRoleId": f"AROAEXAMPLEEXAMPLE123:{session}",
            },
            "Credentials": _told(credentials),
        }


def _matching(pattern: re.Pattern[str], asked: Mapping[str, str], name: str) -> re.Match[str]:
    match = pattern.fullmatch(asked.get(name, ""))
    if match is None:
        raise invalid(name, f"Member must satisfy regular expression pattern: {pattern.pattern}")
    return match


def _duration(asked: Mapping[str, str]) -> int:
    text = asked.get("DurationSeconds", str(SESSION_SECONDS))
    seconds = int(text) if _NUMBER.fullmatch(text) else 0
    if not MIN_SESSION_SECONDS <= seconds <= MAX_SESSION_SECONDS:
        raise invalid(
            "DurationSeconds",
            f"Member must have value between {MIN_SESSION_SECONDS} and {MAX_SESSION_SECONDS}",
        )
    return seconds


def _temporary(seconds: int) -> Credentials:
    return Credentials(
        access_key_id=f"ASIA{secrets.token_hex(8).upper()}",
        secret_access_key=secrets.token_urlsafe(30),
        session_token=secrets.token_urlsafe(96),
        expires=time.time() + seconds,
    )


def _told(credentials: Credentials) -> Json:
    end = datetime.fromtimestamp(credentials.expires or 0.0, UTC)
    return {
        "AccessKeyId": credentials.access_key_id,
        "SecretAccessKey": credentials.secret_access_key,
        "SessionToken": credentials.session_token,
        "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
