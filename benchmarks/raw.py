"""What cannot be undercut: the bare cipher of ``cryptography``, and the bare call of ``boto3``.

Runs in the peers' environments too.  The cipher gets a constant nonce: drawing one is part of what
a library does, and costs as much as the cipher itself for short messages.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from functools import partial
from typing import IO, Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.peer import AAD, Call, Service

IV: Final = bytes(12)
SEGMENT: Final = 1 << 18
TAG: Final = 16
_SEGMENT_AAD: Final = bytes(9)
_CONTEXT: Final = {"kms_core:kid": "0" * 32, "kms_core:share": "0/1", "kms_core:suite": "1"}


def sealing(data: bytes) -> Call:
    """One AES-256-GCM call."""
    return partial(AESGCM(bytes(32)).encrypt, IV, data, AAD)


def opening(data: bytes) -> Call:
    """The same backwards."""
    aead = AESGCM(bytes(32))
    return partial(aead.decrypt, IV, aead.encrypt(IV, data, AAD), AAD)


def sealing_many(values: Sequence[bytes]) -> Call:
    """One call a value, in the tightest loop there is."""
    encrypt = AESGCM(bytes(32)).encrypt
    return lambda: [encrypt(IV, value, AAD) for value in values]


def opening_many(values: Sequence[bytes]) -> Call:
    """The same backwards."""
    aead = AESGCM(bytes(32))
    sealed = [aead.encrypt(IV, value, AAD) for value in values]
    return lambda: [aead.decrypt(IV, value, AAD) for value in sealed]


class Segments:
    """A stream's segments in one buffer, and a second buffer that every call writes into."""

    def __init__(self, mebibytes: int) -> None:
        self._aead = AESGCM(bytes(32))
        self._out = memoryview(bytearray(SEGMENT + TAG))
        count = (mebibytes << 20) // SEGMENT
        sealed = self._aead.encrypt(IV, os.urandom(SEGMENT), _SEGMENT_AAD)
        self._sealed = memoryview(sealed * count)
        self._starts = range(0, count * len(sealed), len(sealed))
        #: As much plaintext as there is; what it says does not matter.
        self.plain: Final = self._sealed[: mebibytes << 20]

    def seal(self) -> None:
        """One ``encrypt_into`` a segment."""
        for start in range(0, len(self.plain), SEGMENT):
            chunk = self.plain[start : start + SEGMENT]
            self._aead.encrypt_into(IV, chunk, _SEGMENT_AAD, self._out)

    def open(self) -> None:
        """One ``decrypt_into`` a segment."""
        out = self._out[:SEGMENT]
        for start in self._starts:
            segment = self._sealed[start : start + SEGMENT + TAG]
            self._aead.decrypt_into(IV, segment, _SEGMENT_AAD, out)


def client(service: Service) -> Any:
    """A client of AWS KMS as the SDK makes it, without retries."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "kms",
        region_name=service.region,
        endpoint_url=service.url,
        aws_access_key_id=service.access_key_id,
        aws_secret_access_key=service.secret_access_key,
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )


def wrapping(services: Sequence[Service]) -> Call:
    """One ``Encrypt`` of a fresh key, by each of the services in turn."""
    turns = itertools.cycle([(client(service), service.key) for service in services])

    def wrap() -> object:
        kms, key = next(turns)
        return wrap_with(kms, key)

    return wrap


def wrap_with(kms: Any, key: str) -> object:
    """One ``Encrypt`` of a fresh data key."""
    return kms.encrypt(KeyId=key, Plaintext=os.urandom(32), EncryptionContext=_CONTEXT)


def copying(source: str, destination: str, piece: int = SEGMENT) -> None:
    """A plain copy loop, on disk when it returns."""
    buffer = bytearray(piece)
    view = memoryview(buffer)
    with (
        open(source, "rb", buffering=0) as reader,  # noqa: PTH123
        open(destination, "wb", buffering=0) as writer,  # noqa: PTH123
    ):
        while size := reader.readinto(buffer):
            write_all(writer, view[:size])
        os.fsync(writer.fileno())


def write_all(writer: IO[bytes], data: memoryview) -> None:
    """Unbuffered files may take less than they are given."""
    while data:
        data = data[writer.write(data) :]
