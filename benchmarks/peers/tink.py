"""Tink: its AEAD without an envelope, its envelope (which caches nothing), its streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, Any

from benchmarks import raw
from benchmarks.peer import AAD, Call, Herd, Service, Streams, Tally, Variant, Vault

NAME = "tink"
REQUIREMENTS = ("tink==1.16.1", "boto3==1.44.8")
STATEMENT = "import tink; from tink import aead"
_PIECE = 1 << 20


def _aead() -> Any:
    import tink  # type: ignore[import-not-found]
    from tink import aead

    aead.register()
    return tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM).primitive(aead.Aead)


def _envelope_under(key: Any) -> Any:
    from tink import aead

    return aead.KmsEnvelopeAead(aead.aead_key_templates.AES256_GCM, key)


def _vault_of(aead: Any) -> Vault:
    return Vault(
        sealing=lambda data: partial(aead.encrypt, data, AAD),
        opening=lambda sealed: partial(aead.decrypt, sealed, AAD),
    )


def _slow(delay: float) -> tuple[Any, Callable[[], int]]:
    """An envelope under a key whose service takes so long, and how often it was asked."""
    from tink import aead

    key, calls = _aead(), Tally()

    class Service(aead.Aead):  # type: ignore[misc]
        def encrypt(self, plaintext: bytes, associated_data: bytes) -> bytes:
            calls.add()
            time.sleep(delay)
            return bytes(key.encrypt(plaintext, associated_data))

        def decrypt(self, ciphertext: bytes, associated_data: bytes) -> bytes:
            calls.add()
            time.sleep(delay)
            return bytes(key.decrypt(ciphertext, associated_data))

    return _envelope_under(Service()), calls


def _sealing_herd(delay: float) -> Herd:
    envelope, asked = _slow(delay)
    return Herd(partial(envelope.encrypt, bytes(256), AAD), asked)


def _opening_herd(delay: float) -> Herd:
    envelope, asked = _slow(delay)
    return Herd(partial(envelope.decrypt, envelope.encrypt(bytes(256), AAD), AAD), asked)


def _cold(services: Sequence[Service]) -> Call:
    from tink import aead

    (service,) = services
    kms = raw.client(service)
    aead.register()

    class AwsKey(aead.Aead):  # type: ignore[misc]
        """As Tink's own integration does it, against the endpoint of this run."""

        def encrypt(self, plaintext: bytes, associated_data: bytes) -> bytes:
            context = {"EncryptionContext": {"associatedData": associated_data.hex()}}
            answer = kms.encrypt(
                KeyId=service.key, Plaintext=plaintext, **(context if associated_data else {})
            )
            return bytes(answer["CiphertextBlob"])

        def decrypt(self, ciphertext: bytes, associated_data: bytes) -> bytes:
            context = {"EncryptionContext": {"associatedData": associated_data.hex()}}
            answer = kms.decrypt(
                KeyId=service.key, CiphertextBlob=ciphertext, **(context if associated_data else {})
            )
            return bytes(answer["Plaintext"])

    return partial(_envelope_under(AwsKey()).encrypt, bytes(256), AAD)


def _streams() -> Streams:
    import tink
    from tink import streaming_aead

    streaming_aead.register()
    template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
    streaming = tink.new_keyset_handle(template).primitive(streaming_aead.StreamingAead)

    def seal(plain: memoryview, sink: IO[bytes]) -> None:
        with streaming.new_encrypting_stream(sink, AAD) as writer:
            for start in range(0, len(plain), _PIECE):
                raw.write_all(writer, plain[start : start + _PIECE])

    def open_(source: IO[bytes]) -> None:
        with streaming.new_decrypting_stream(source, AAD) as reader:
            while reader.read(_PIECE):
                pass

    return Streams(seal, open_, mebibytes=256)


VARIANTS = (
    Variant(
        "Tink AEAD",
        "one key in memory, no envelope",
        envelope=False,
        cached=lambda: _vault_of(_aead()),
        streams=_streams,
    ),
    Variant(
        "Tink KmsEnvelopeAead",
        "a data key a message, wrapped by a key in memory; caches nothing",
        envelope=True,
        cached=lambda: _vault_of(_envelope_under(_aead())),
        cold=_cold,
        herd={"seal, cold": _sealing_herd, "open, cold": _opening_herd},
        most_services=1,
    ),
)
