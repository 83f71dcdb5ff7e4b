"""The provider type ``aws-kms``: symmetric keys of AWS KMS.

Wraps under one configured key and unwraps for it, for its replicas and for the retired keys that
the configuration names.  Every request names its key and every answer must name the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from kms_aws.answer import SYMMETRIC_DEFAULT, Answer
from kms_aws.connection import Connection
from kms_aws.errors import ciphertext_refused, translate
from kms_aws.names import KeyArn
from kms_aws.settings import AwsKmsSettings
from kms_core import (
    Ciphertext,
    Context,
    DataKey,
    Health,
    InvalidRequest,
    KeyInfo,
    Unavailable,
    hookimpl,
)

WRAP_ALG: Final = 0x0101  # SYMMETRIC_DEFAULT with the context as EncryptionContext
MAX_PLAINTEXT_BYTES: Final = 4096  # what Encrypt takes
MAX_CIPHERTEXT_BYTES: Final = 6144  # what Decrypt takes
DATA_KEY_BYTES: Final = 32

_USABLE: Final = frozenset({"Enabled", "Updating"})  # Updating: the primary Region is moving
_STATES: Final[Mapping[str, Literal["enabled", "disabled", "pending"]]] = {
    "Enabled": "enabled",
    "Updating": "enabled",
    "Creating": "pending",
    "PendingImport": "pending",
    "Disabled": "disabled",
    "PendingDeletion": "disabled",  # until it is gone, cancelling brings it back
    "PendingReplicaDeletion": "disabled",
}


class AwsKmsProvider:
    """One key of AWS KMS in one region, with the keys it also opens for."""

    type_name: ClassVar[str] = "aws-kms"
    settings: ClassVar[type[Any]] = AwsKmsSettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset({WRAP_ALG})
    protection: Literal["hsm", "software", "local"] = "hsm"

    def __init__(self, settings: AwsKmsSettings) -> None:
        self._configured = settings.configured_key
        self._region = self._configured.region
        self._regions = frozenset({self._region, *settings.replica_regions})
        self._retired = settings.retired_keys
        self._connection = Connection(settings)
        # Filled at most once: a name that is repointed later does not change who we are.
        self._resolved: dict[Literal["arn"], KeyArn] = {}
        if arn := self._configured.arn:
            self._resolved["arn"] = arn

    @property
    def key_uri(self) -> str:
        """With the ARN if one is configured, else with the region and the name as configured."""
        return self._configured.uri

    def match(self, key_uri: str) -> str | None:
        """The ARN, in this region, of the configured or retired key that ``key_uri`` names.

        Asks the service once if the configured name is not a key ARN and may stand for that key.
        """
        if key_uri == self.key_uri:
            return str(self._arn())
        arn = self._here(KeyArn.of_uri(key_uri))
        if arn is None:
            return None
        if arn in self._retired or (self._configured.may_be(arn) and arn == self._arn()):
            return str(arn)
        return None

    def domain(self, key_uri: str) -> str:
        """The account: its owner can lock us out of all its keys, in every region."""
        arn = KeyArn.of_uri(key_uri)
        if arn is None and key_uri == self.key_uri:
            arn = self._resolved.get("arn")
        account = arn.account if arn else self._configured.account
        return f"{self.type_name}:{account}" if account else self.type_name

    def prepare(self) -> None:
        """Import the SDK, find the credentials and build the client."""
        try:
            self._connection.client()
        except Exception as exc:  # noqa: BLE001  the SDK raises more than its own classes
            fault = translate(exc, "prepare", self._configured.name)
        else:
            return
        raise fault.error from fault.cause

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap 1 to 4096 bytes; the context is the EncryptionContext."""
        _check_plaintext(plaintext)
        key = self._sent(key_id)
        answer = self._ask(
            "encrypt",
            key,
            Plaintext=plaintext,
            EncryptionAlgorithm=SYMMETRIC_DEFAULT,
            **_bound_to(context),
        )
        answer.check_algorithm()
        return self._ciphertext(key, answer)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes:
        """Unwrap with exactly the key that ``key_id`` names."""
        key = self._sent(key_id)
        answer = self._ask(
            "decrypt",
            key,
            CiphertextBlob=_checked_blob(ciphertext, key),
            EncryptionAlgorithm=SYMMETRIC_DEFAULT,
            **_bound_to(context),
        )
        answer.check_algorithm()
        self._recognised(key, answer.arn("KeyId"))
        return answer.blob("Plaintext", 1, MAX_PLAINTEXT_BYTES)

    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        """A 32-byte key drawn and wrapped by the service."""
        key = self._sent(key_id)
        answer = self._ask("generate_data_key", key, KeySpec="AES_256", **_bound_to(context))
        plaintext = answer.blob("Plaintext", DATA_KEY_BYTES, DATA_KEY_BYTES)
        return DataKey(plaintext, self._ciphertext(key, answer))

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        """What DescribeKey tells; versions and rotation would take further permissions."""
        arn, metadata = self._describe(self._sent(key_id))
        external = metadata.word("Origin") == "EXTERNAL_KEY_STORE"
        return KeyInfo(
            key_uri=arn.uri,
            state=_STATES.get(_state(metadata), "unknown"),
            # Where an external key store keeps its keys is not for AWS to vouch for.
            protection="software" if external else "hsm",
            primary_version=metadata.word("CurrentKeyMaterialId"),
            region=arn.region,
        )

    @hookimpl
    def health(self, key_id: str) -> Health:
        """Whether the key may be used: one DescribeKey, no key material involved."""
        arn, metadata = self._describe(self._sent(key_id))
        state, spec = _state(metadata), metadata.word("KeySpec")
        if spec not in {None, SYMMETRIC_DEFAULT}:
            return Health(ok=False, reason=f"key {arn} is {spec}; configure a symmetric key")
        return Health(ok=state in _USABLE, reason=f"key {arn} is {state}")

    def _ask(self, operation: str, key: str, **parameters: Any) -> Answer:
        """One request; raises only the core's errors."""
        try:
            ask = getattr(self._connection.client(), operation)
            return Answer(key, ask(KeyId=key, **parameters))
        except Exception as exc:  # noqa: BLE001  a malformed answer raises anything in the SDK
            fault = translate(exc, operation, key)
        if fault.stale:
            self._connection.discard()
        # Out here, so that a cause whose text may show parameters is not even the context.
        raise fault.error from fault.cause

    def _describe(self, key: str) -> tuple[KeyArn, Answer]:
        metadata = self._ask("describe_key", key).inside("KeyMetadata")
        return self._recognised(key, metadata.arn("Arn")), metadata

    def _ciphertext(self, key: str, answer: Answer) -> Ciphertext:
        return Ciphertext(
            data=answer.blob("CiphertextBlob", 1, MAX_CIPHERTEXT_BYTES),
            key_uri=self._recognised(key, answer.arn("KeyId")).uri,
            key_version=answer.word("KeyMaterialId"),
            wrap_alg=WRAP_ALG,
        )

    def _arn(self) -> KeyArn:
        """The configured key's ARN; asks the service the first time if only it can tell."""
        if arn := self._resolved.get("arn"):
            return arn
        arn, _ = self._describe(self._configured.name)
        return arn

    def _sent(self, key_id: str) -> str:
        """What to ask the service for: the ARN as soon as it is known.  Other keys are refused."""
        if key_id == self._configured.name:
            return str(self._resolved.get("arn", key_id))
        arn = KeyArn.parse(key_id)
        if arn is None or not self._may_use(arn):
            raise InvalidRequest(
                f"{key_id!r} is no key of this instance, which has {self._configured.name}; "
                "use what match() returns"
            )
        return key_id

    def _may_use(self, arn: KeyArn) -> bool:
        resolved = self._resolved.get("arn")
        ours = arn == resolved if resolved else self._configured.may_be(arn)
        return ours or arn in self._retired

    def _recognised(self, key: str, echoed: KeyArn) -> KeyArn:
        """The key an answer names, in this region; raises unless it is the one asked for."""
        arn = echoed.seen_from(self._region)
        expected = KeyArn.parse(key)
        if expected is None and self._configured.may_be(arn):
            expected = self._resolved.setdefault("arn", arn)
        if arn != expected:
            raise Unavailable(
                f"AWS KMS was asked for {key} and answered for {echoed}; check endpoint_url and "
                "whether an alias was repointed while this process ran"
            )
        return arn

    def _here(self, arn: KeyArn | None) -> KeyArn | None:
        """The same key in this region, ``None`` if it is out of reach."""
        if arn is None or arn.region not in self._regions:
            return None
        arn = arn.seen_from(self._region)
        return arn if arn.region == self._region else None


def _bound_to(context: Context) -> dict[str, Any]:
    return {"EncryptionContext": dict(context)} if context else {}


def _check_plaintext(plaintext: object) -> None:
    if not isinstance(plaintext, bytes | bytearray):
        raise InvalidRequest(f"a plaintext is bytes, not {type(plaintext).__name__}; encode it")
    if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
        raise InvalidRequest(
            f"AWS KMS wraps 1 to {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}; "
            "seal() takes more"
        )


def _checked_blob(ciphertext: Ciphertext, key: str) -> bytes:
    if not isinstance(ciphertext.data, bytes | bytearray):
        raise InvalidRequest(f"a ciphertext is bytes, not {type(ciphertext.data).__name__}")
    if not 1 <= len(ciphertext.data) <= MAX_CIPHERTEXT_BYTES or ciphertext.wrap_alg != WRAP_ALG:
        raise ciphertext_refused(key)
    return ciphertext.data


def _state(metadata: Answer) -> str:
    state = metadata.word("KeyState")
    if state is None:
        raise metadata.malformed("KeyState")
    return state
