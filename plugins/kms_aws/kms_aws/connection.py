"""The SDK's client: when it is built, with which limits, and when it is thrown away.

One attempt per call, bounded waiting, and no address from the environment: retries, time-outs and
fail-over are decided by the core.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from attrs import define, field

from kms_aws.settings import AwsKmsSettings
from kms_core import Secret


@define(eq=False)
class _Held:
    """What belongs to one process: after a fork, locks and sockets are the parent's."""

    pid: int = field(factory=os.getpid)
    lock: threading.Lock = field(factory=threading.Lock)
    client: Any = None  # clients are classes that the SDK makes at run time


class Connection:
    """One client of AWS KMS, shared by all threads of a process and built on first use."""

    def __init__(self, settings: AwsKmsSettings) -> None:
        self._settings = settings
        self._held = _Held()

    def client(self) -> Any:
        """The client; raises whatever the SDK raises while it looks for credentials."""
        held = self._of_this_process()
        if (client := held.client) is not None:
            return client
        with held.lock:  # sessions are not thread-safe, clients are
            if held.client is None:
                held.client = _build(self._settings)
            return held.client

    def discard(self) -> None:
        """Forget the client and its credentials; calls under way finish with it."""
        self._of_this_process().client = None

    def close(self) -> None:
        """Close the client's sockets."""
        held = self._of_this_process()
        client, held.client = held.client, None
        if client is not None:
            client.close()

    def _of_this_process(self) -> _Held:
        # Threads of a new child may both get here: then one of them builds a client for itself.
        if self._held.pid != os.getpid():
            self._held = _Held()
        return self._held


def _build(settings: AwsKmsSettings) -> Any:
    import boto3.session
    import botocore.session
    from botocore.config import Config

    core = botocore.session.Session()
    # As the session's default, so that it also holds for the clients that fetch credentials.
    core.set_default_client_config(Config(**_limits(settings)))
    session = boto3.session.Session(
        aws_access_key_id=_revealed(settings.access_key_id),
        aws_secret_access_key=_revealed(settings.secret_access_key),
        aws_session_token=_revealed(settings.session_token),
        botocore_session=core,
        profile_name=settings.profile,
    )
    return session.client(
        "kms",
        region_name=settings.configured_key.region,
        endpoint_url=settings.endpoint_url,
        verify=None if settings.ca_file is None else str(settings.ca_file),
        config=Config(proxies={}) if settings.is_loopback else None,
    )


def _limits(settings: AwsKmsSettings) -> dict[str, Any]:
    return {
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.attempt_timeout,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": settings.max_connections,
        "tcp_keepalive": True,
        "use_fips_endpoint": False,
        "ignore_configured_endpoint_urls": True,
    }


def _revealed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()
