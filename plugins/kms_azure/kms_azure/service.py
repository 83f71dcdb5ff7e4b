"""Asking the vault: one request per question, and only the core's errors come back."""

from __future__ import annotations

from typing import Any

from kms_azure.answer import Answer
from kms_azure.connection import Connection
from kms_azure.errors import Fault, refused, translate
from kms_azure.names import VaultKey
from kms_azure.settings import AzureKeyVaultSettings


class Service:
    """One vault, with one identity."""

    def __init__(self, settings: AzureKeyVaultSettings) -> None:
        self._connection = Connection(settings)
        self._key = settings.configured_key

    def get(self, key: VaultKey) -> Answer:
        """What the service tells about a key; without a version, about the current one."""
        return self._ask("get", key, "GET", key.path)

    def rotate(self, key: VaultKey) -> Answer:
        """Make a new version, and what the service tells about it."""
        return self._ask("rotate", key, "POST", f"{key.path}/rotate")

    def versions(self, key: VaultKey, query: str) -> Answer:
        """One page of the versions of a key."""
        return self._ask("versions", key, "GET", f"/keys/{key.name}/versions{query}")

    def perform(self, operation: str, key: VaultKey, **parameters: str) -> Answer:
        """A cryptographic operation with an exact version, which the service carries out."""
        return self._ask(operation, key, "POST", f"{key.path}/{operation}", parameters)

    def prepare(self) -> None:
        """Import the SDK and build the client."""
        try:
            self._connection.prepare()
        except Exception as exc:  # noqa: BLE001  the SDK raises more than its own classes
            fault = translate(exc, "prepare", str(self._key))
        else:
            return
        raise fault.error from fault.cause

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def _ask(
        self,
        operation: str,
        key: VaultKey,
        method: str,
        path: str,
        content: dict[str, Any] | None = None,
    ) -> Answer:
        outcome = self._outcome(operation, key, method, path, content)
        if isinstance(outcome, Answer):
            return outcome
        if outcome.stale:
            self._connection.discard()
        # Out here, so that a cause whose text may show parameters is not even the context.
        raise outcome.error from outcome.cause

    def _outcome(
        self, operation: str, key: VaultKey, method: str, path: str, content: dict[str, Any] | None
    ) -> Answer | Fault:
        try:
            reply = self._connection.send(method, path, content)
        except Exception as exc:  # noqa: BLE001  a malformed answer raises anything in the SDK
            return translate(exc, operation, str(key))
        if 200 <= reply.status < 300:
            return Answer.of(reply, key)
        return refused(reply, operation, str(key))
