"""AWS Encryption SDK for Python with its caching materials manager, signed (default) and not.

The cached cases wrap under an AES key in memory, which favours it: no service is ever asked.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import IO, Any

from benchmarks.peer import CONTEXT, Call, Herd, Service, Streams, Tally, Variant, Vault

NAME = "aws-encryption-sdk"
REQUIREMENTS = ("aws-encryption-sdk==4.0.7", "boto3==1.44.8")
STATEMENT = "import aws_encryption_sdk"
_UNSIGNED = "AES_256_GCM_HKDF_SHA512_COMMIT_KEY"
_SIGNED = "AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384"
_FRAME = 1 << 18
_PIECE = 1 << 20


def _keys(delay: float = 0.0) -> tuple[Any, Tally]:
    """An AES key in memory as a master key provider, and its count of requests."""
    from aws_encryption_sdk.identifiers import (  # type: ignore[import-not-found]
        EncryptionKeyType,
        WrappingAlgorithm,
    )
    from aws_encryption_sdk.internal.crypto.wrapping_keys import (  # type: ignore[import-not-found]
        WrappingKey,
    )
    from aws_encryption_sdk.key_providers.raw import (  # type: ignore[import-not-found]
        RawMasterKeyProvider,
    )

    calls = Tally()

    class SlowKey(WrappingKey):  # type: ignore[misc]
        def encrypt(self, *arguments: Any, **named: Any) -> Any:
            calls.add()
            time.sleep(delay)
            return super().encrypt(*arguments, **named)

        def decrypt(self, *arguments: Any, **named: Any) -> Any:
            calls.add()
            time.sleep(delay)
            return super().decrypt(*arguments, **named)

    class Keys(RawMasterKeyProvider):  # type: ignore[misc]
        provider_id = "benchmarks"

        def _get_raw_key(self, key_id: bytes) -> Any:  # noqa: ARG002  there is one
            return (SlowKey if delay else WrappingKey)(
                wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
                wrapping_key=bytes(32),
                wrapping_key_type=EncryptionKeyType.SYMMETRIC,
            )

    keys = Keys()
    keys.add_master_key("key")
    return keys, calls


def _caching(keys: Any) -> Any:
    import aws_encryption_sdk  # type: ignore[import-not-found]

    return aws_encryption_sdk.CachingCryptoMaterialsManager(
        master_key_provider=keys,
        cache=aws_encryption_sdk.LocalCryptoMaterialsCache(1000),
        max_age=3600.0,
    )


def _client_and_suite(suite: str) -> tuple[Any, Any]:
    import aws_encryption_sdk
    from aws_encryption_sdk.identifiers import AlgorithmSuite

    return aws_encryption_sdk.EncryptionSDKClient(), AlgorithmSuite[suite]


def _cached(suite: str) -> Vault:
    client, algorithm = _client_and_suite(suite)
    manager = _caching(_keys()[0])

    def opening(sealed: tuple[bytes, Any]) -> Call:
        return lambda: client.decrypt(source=sealed[0], materials_manager=manager)[0]

    return Vault(
        sealing=lambda data: partial(
            client.encrypt,
            source=data,
            materials_manager=manager,
            encryption_context=CONTEXT,
            algorithm=algorithm,
        ),
        opening=opening,
    )


def _sealing_herd(suite: str, delay: float) -> Herd:
    client, algorithm = _client_and_suite(suite)
    keys, calls = _keys(delay)
    call = partial(
        client.encrypt,
        source=bytes(256),
        materials_manager=_caching(keys),
        encryption_context=CONTEXT,
        algorithm=algorithm,
    )
    return Herd(call, calls)


def _opening_herd(suite: str, delay: float) -> Herd:
    client, algorithm = _client_and_suite(suite)
    keys, calls = _keys(delay)
    sealed, _ = client.encrypt(
        source=bytes(256), key_provider=keys, encryption_context=CONTEXT, algorithm=algorithm
    )
    call = partial(client.decrypt, source=sealed, materials_manager=_caching(keys))
    return Herd(call, calls)


def _cold(suite: str, services: Sequence[Service]) -> Call:
    import aws_encryption_sdk

    first = services[0]
    # Its providers take no endpoint and no keys: they find both where the SDK looks for them.
    os.environ.update(
        AWS_ENDPOINT_URL_KMS=first.url,
        AWS_ACCESS_KEY_ID=first.access_key_id,
        AWS_SECRET_ACCESS_KEY=first.secret_access_key,
        AWS_EC2_METADATA_DISABLED="true",
    )
    client, algorithm = _client_and_suite(suite)
    keys = aws_encryption_sdk.StrictAwsKmsMasterKeyProvider(
        key_ids=[service.key for service in services]
    )
    return partial(
        client.encrypt,
        source=bytes(256),
        key_provider=keys,
        encryption_context=CONTEXT,
        algorithm=algorithm,
    )


def _streams() -> Streams:
    """Unsigned, with frames as large as our segments: its defaults are ten times slower."""
    client, algorithm = _client_and_suite(_UNSIGNED)
    manager = _caching(_keys()[0])

    def seal(plain: memoryview, sink: IO[bytes]) -> None:
        with client.stream(
            mode="e",
            source=io.BytesIO(plain),
            materials_manager=manager,
            encryption_context=CONTEXT,
            algorithm=algorithm,
            frame_length=_FRAME,
        ) as stream:
            while piece := stream.read(_PIECE):
                sink.write(piece)

    def open_(source: IO[bytes]) -> None:
        with client.stream(mode="d", source=source, materials_manager=manager) as stream:
            while stream.read(_PIECE):
                pass

    return Streams(seal, open_, mebibytes=64)


VARIANTS = (
    Variant(
        "ESDK caching, unsigned",
        "caching materials manager, key commitment, no signature; wraps under a key in memory",
        envelope=True,
        cached=partial(_cached, _UNSIGNED),
        cold=partial(_cold, _UNSIGNED),
        streams=_streams,
        herd={
            "seal, cold": partial(_sealing_herd, _UNSIGNED),
            "open, cold": partial(_opening_herd, _UNSIGNED),
        },
    ),
    Variant(
        "ESDK caching, default",
        "caching materials manager and its default suite, which signs every message",
        envelope=True,
        cached=partial(_cached, _SIGNED),
        cold=partial(_cold, _SIGNED),
    ),
)
