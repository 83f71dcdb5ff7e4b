"""Asking the service: one request per question, and only the core's errors come back."""

from __future__ import annotations

from typing import Any

from kms_gcp.answer import Answer
from kms_gcp.connection import Connection
from kms_gcp.errors import Fault, fail, translate
from kms_gcp.names import KeyName
from kms_gcp.settings import GcpKmsSettings


class Service:
    """Google Cloud KMS, with one identity."""

    def __init__(self, settings: GcpKmsSettings) -> None:
        self._connection = Connection(settings)
        self._key = settings.configured_key

    def attempt(self, rpc: str, key: KeyName, **fields: Any) -> Answer | Fault:
        """One request about ``key``, for callers to whom some refusals are an answer."""
        named = {} if "parent" in fields else {"name": str(key)}
        try:
            return Answer(key, self._connection.call(rpc, {**named, **fields}))
        except Exception as exc:  # noqa: BLE001  the SDK raises more than its own classes
            fault = translate(exc, rpc, str(key))
        if fault.stale:
            self._connection.forget_identity()
        return fault

    def ask(self, rpc: str, key: KeyName, **fields: Any) -> Answer:
        """One request about ``key``; raises only the core's errors."""
        outcome = self.attempt(rpc, key, **fields)
        if isinstance(outcome, Fault):
            fail(outcome)
        return outcome

    def prepare(self) -> None:
        """Import the SDK and build the channel."""
        try:
            self._connection.prepare()
        except Exception as exc:  # noqa: BLE001  as above
            fault = translate(exc, "prepare", str(self._key))
        else:
            return
        fail(fault)

    def close(self) -> None:
        """Close the channel."""
        self._connection.close()
