"""Asking the service: one request per question, and only the core's errors come back."""

from __future__ import annotations

from typing import Any, NoReturn

from kms_aws.answer import Answer
from kms_aws.connection import Connection
from kms_aws.errors import Fault, translate
from kms_aws.settings import AwsKmsSettings


class Service:
    """AWS KMS in one region, with one set of credentials."""

    def __init__(self, settings: AwsKmsSettings) -> None:
        self._connection = Connection(settings)
        self._name = settings.key

    def attempt(self, operation: str, key: str, **parameters: Any) -> Answer | Fault:
        """One request about ``key``, for callers to whom some refusals are an answer."""
        try:
            ask = getattr(self._connection.client(), operation)
            return Answer(key, ask(KeyId=key, **parameters))
        except Exception as exc:  # noqa: BLE001  a malformed answer raises anything in the SDK
            fault = translate(exc, operation, key)
        if fault.stale:
            self._connection.discard()
        return fault

    def ask(self, operation: str, key: str, **parameters: Any) -> Answer:
        """One request about ``key``; raises only the core's errors."""
        outcome = self.attempt(operation, key, **parameters)
        if isinstance(outcome, Fault):
            fail(outcome)
        return outcome

    def prepare(self) -> None:
        """Import the SDK, find the credentials and build the client."""
        try:
            self._connection.client()
        except Exception as exc:  # noqa: BLE001  the SDK raises more than its own classes
            fault = translate(exc, "prepare", self._name)
        else:
            return
        fail(fault)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()


def fail(fault: Fault) -> NoReturn:
    """Raise what a fault means, not inside the handler of what the SDK raised.

    A cause whose text may show parameters is then not even the context of the error.
    """
    raise fault.error from fault.cause
