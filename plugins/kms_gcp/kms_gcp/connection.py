"""The channel to the service: when it is built, with which limits, and when it is thrown away.

The SDK's message types are used and its client is not: that writes whole requests, keys and tokens
included, to the log if a logger of its own is set to DEBUG.  One attempt per call, bounded waiting:
retries and fail-over are decided by the core.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from attrs import define, field

from kms_core import ConfigError
from kms_gcp.credentials import Identity, identity_of
from kms_gcp.errors import leaves_no_connection
from kms_gcp.settings import GcpKmsSettings, is_loopback

_SERVICE: Final = "google.cloud.kms.v1.KeyManagementService"
#: Answers that are not called after the question.
_ANSWERS: Final[Mapping[str, str]] = {
    "CreateCryptoKeyVersion": "CryptoKeyVersion",
    "GetCryptoKey": "CryptoKey",
    "GetCryptoKeyVersion": "CryptoKeyVersion",
    "GetPublicKey": "PublicKey",
    "UpdateCryptoKeyPrimaryVersion": "CryptoKey",
}
_LIMITS: Final = (
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 60_000),  # more often than this Google's servers hang up
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 4 << 20),
    # A new channel makes a connection of its own, and does not wait for an older one's back-off.
    ("grpc.use_local_subchannel_pool", 1),
)


@define(eq=False)
class _Line:
    """A channel, and the calls that were made ready on it."""

    channel: Any
    calls: dict[str, Any] = field(factory=dict)


@define(eq=False)
class _Held:
    """What belongs to one process: after a fork, threads and sockets are the parent's."""

    identity: Identity
    pid: int = field(factory=os.getpid)
    lock: threading.Lock = field(factory=threading.Lock)
    line: _Line | None = None
    inherited: _Held | None = None  # kept, since finalising its channel would touch the parent's


class Connection:
    """One channel to Cloud KMS, shared by all threads of a process and built on first use."""

    def __init__(self, settings: GcpKmsSettings) -> None:
        self._settings = settings
        self._held = _Held(identity_of(settings))

    def call(self, rpc: str, fields: Mapping[str, Any]) -> Any:
        """The answer, a protobuf message; raises ``NoToken``, or whatever the SDK raises."""
        held = self._of_this_process()
        line = self._line(held)
        request = _message(f"{rpc}Request")(**fields)
        metadata = (_routing(fields), *held.identity.headers())
        try:
            return _ready(line, rpc)(
                request, timeout=self._settings.attempt_timeout, metadata=metadata
            )
        except Exception as exc:
            # gRPC would go on using a connection that fell silent for another minute, and refuse
            # calls for seconds after one that was refused.  Other calls on this channel go on.
            if leaves_no_connection(exc) and held.line is line:
                held.line = None
            raise

    def prepare(self) -> None:
        """Import the SDK and build the channel; nothing is sent yet."""
        self._line(self._of_this_process())

    def forget_identity(self) -> None:
        """The credentials were refused: find them anew."""
        self._of_this_process().identity.forget()

    def close(self) -> None:
        """Close the channel; calls under way are cancelled, a later one opens a new channel."""
        held = self._of_this_process()
        line, held.line = held.line, None
        if line is not None:
            line.channel.close()
        held.identity.close()

    def _line(self, held: _Held) -> _Line:
        if (line := held.line) is not None:
            return line
        with held.lock:
            line = held.line
            if line is None:
                _message("EncryptRequest")  # what the first call would wait for
                line = held.line = _Line(_channel(self._settings))
            return line

    def _of_this_process(self) -> _Held:
        # Threads of a new child may both get here: then one of them builds a channel for itself.
        if self._held.pid != os.getpid():
            self._held = _Held(identity_of(self._settings), inherited=self._held)
        return self._held


def _channel(settings: GcpKmsSettings) -> Any:
    import grpc

    local = is_loopback(settings.address)
    options = (
        *_LIMITS,
        # Whatever its name says, this is how long gRPC lets a connection attempt take: longer than
        # a call, so that a host which does not answer is told as such and not as unreachable.
        ("grpc.min_reconnect_backoff_ms", int(settings.attempt_timeout * 2000) + 1000),
        ("grpc.enable_http_proxy", 0 if local else 1),
    )
    if settings.insecure:
        return grpc.insecure_channel(settings.address, options=options)
    trust = grpc.ssl_channel_credentials(_roots(settings.ca_file))
    return grpc.secure_channel(settings.address, trust, options=options)


def _roots(ca_file: Path | None) -> bytes | None:
    """Certificates to trust in place of gRPC's, which would not say what is wrong with them."""
    if ca_file is None:
        return None
    try:
        pem = ca_file.read_bytes()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"ca_file: {ca_file} cannot be read or holds no certificate ({type(exc).__name__}); "
            "it must hold certificates in PEM"
        ) from exc
    return pem


def _ready(line: _Line, rpc: str) -> Any:
    if rpc not in line.calls:
        line.calls[rpc] = line.channel.unary_unary(
            f"/{_SERVICE}/{rpc}",
            request_serializer=_serialized,
            response_deserializer=_message(_ANSWERS.get(rpc, f"{rpc}Response")).FromString,
        )
    return line.calls[rpc]


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _message(name: str) -> Any:
    """A protobuf class of the service, without the wrapper that takes text for base64."""
    from google.cloud.kms_v1 import types

    return getattr(types, name).pb()


def _routing(fields: Mapping[str, Any]) -> tuple[str, str]:
    """By this header requests find the region of their key."""
    name = "name" if "name" in fields else "parent"
    return "x-goog-request-params", f"{name}={quote(fields[name], safe='')}"
