"""The SDK's clients: when they are built, with which limits, and when they are thrown away.

One attempt per call, bounded waiting, and no address from the environment: retries, time-outs and
fail-over are decided by the core.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final

from attrs import define, field, frozen

from kms_aws.errors import RoleNotAssumed
from kms_aws.settings import AwsKmsSettings, is_loopback
from kms_core import Secret

ROLE_SESSION_NAME: Final = "kms-aws"  # what CloudTrail shows unless the configuration says more


@frozen
class _Clients:
    """What answers calls, and what renews the credentials for them if a role is assumed."""

    kms: Any  # clients are classes that the SDK makes at run time
    sts: Any = None

    def close(self) -> None:
        for client in (self.kms, self.sts):
            if client is not None:
                client.close()


@define(eq=False)
class _Held:
    """What belongs to one process: after a fork, locks and sockets are the parent's."""

    pid: int = field(factory=os.getpid)
    lock: threading.Lock = field(factory=threading.Lock)
    clients: _Clients | None = None


class Connection:
    """One client of AWS KMS, shared by all threads of a process and built on first use."""

    def __init__(self, settings: AwsKmsSettings) -> None:
        self._settings = settings
        self._held = _Held()

    def client(self) -> Any:
        """The client; raises whatever the SDK raises while it looks for credentials."""
        held = self._of_this_process()
        if (clients := held.clients) is not None:
            return clients.kms
        with held.lock:  # sessions are not thread-safe, clients are
            if held.clients is None:
                held.clients = _build(self._settings)
            return held.clients.kms

    def discard(self) -> None:
        """Forget the client and its credentials; calls under way finish with it."""
        self._of_this_process().clients = None

    def close(self) -> None:
        """Close the client's sockets."""
        held = self._of_this_process()
        clients, held.clients = held.clients, None
        if clients is not None:
            clients.close()

    def _of_this_process(self) -> _Held:
        # Threads of a new child may both get here: then one of them builds a client for itself.
        if self._held.pid != os.getpid():
            self._held = _Held()
        return self._held


def _build(settings: AwsKmsSettings) -> _Clients:
    core = _core_session(settings)
    own = _session(settings, core, with_keys=True)
    if settings.role_arn is None:
        return _Clients(_client(settings, own, "kms", settings.endpoint_url))
    sts = _client(settings, own, "sts", settings.sts_endpoint_url)
    core = _core_session(settings)
    core.register_component("credential_provider", _AssumedRole(settings, sts, settings.role_arn))
    assumed = _session(settings, core, with_keys=False)
    return _Clients(_client(settings, assumed, "kms", settings.endpoint_url), sts)


def _core_session(settings: AwsKmsSettings) -> Any:
    import botocore.session
    from botocore.config import Config

    core = botocore.session.Session()
    # As the session's default, so that it also holds for the clients that fetch credentials.
    core.set_default_client_config(Config(**_limits(settings)))
    return core


def _session(settings: AwsKmsSettings, core: Any, *, with_keys: bool) -> Any:
    import boto3.session

    keys = {
        "aws_access_key_id": _revealed(settings.access_key_id),
        "aws_secret_access_key": _revealed(settings.secret_access_key),
        "aws_session_token": _revealed(settings.session_token),
    }
    return boto3.session.Session(
        botocore_session=core, profile_name=settings.profile, **(keys if with_keys else {})
    )


def _client(settings: AwsKmsSettings, session: Any, service: str, url: str | None) -> Any:
    from botocore.config import Config

    return session.client(
        service,
        region_name=settings.configured_key.region,
        endpoint_url=url,
        verify=None if settings.ca_file is None else str(settings.ca_file),
        config=Config(proxies={}) if url is not None and is_loopback(url) else None,
    )


def _limits(settings: AwsKmsSettings) -> dict[str, Any]:
    return {
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.attempt_timeout,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": settings.max_connections,
        "tcp_keepalive": True,
        "use_fips_endpoint": settings.fips,
        "use_dualstack_endpoint": settings.dualstack,
        "ignore_configured_endpoint_urls": True,
    }


class _AssumedRole:
    """Stands where the SDK looks for credentials, and tells it those of a role.

    The SDK asks for them when the first request is signed, and again before they expire.
    """

    def __init__(self, settings: AwsKmsSettings, sts: Any, role: str) -> None:
        self._sts = sts
        self._role = role
        self._parameters = {
            "RoleArn": role,
            "RoleSessionName": settings.role_session_name or ROLE_SESSION_NAME,
            **({"ExternalId": settings.external_id} if settings.external_id else {}),
        }

    def load_credentials(self) -> Any:
        """Credentials that renew themselves; asks nobody yet."""
        from botocore.credentials import DeferredRefreshableCredentials

        return DeferredRefreshableCredentials(self._assume, "assume-role")

    def _assume(self) -> dict[str, str]:
        try:
            given = self._sts.assume_role(**self._parameters)["Credentials"]
            return {
                "access_key": given["AccessKeyId"],
                "secret_key": given["SecretAccessKey"],
                "token": given["SessionToken"],
                "expiry_time": given["Expiration"].isoformat(),
            }
        except Exception as exc:  # whatever it is, it is not the fault of the call being signed
            raise RoleNotAssumed(self._role, exc) from exc


def _revealed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()
