"""AWS KMS on loopback as the service itself is: strict, with real cryptography, and with STS.

It refuses what the service refuses, in the service's words.  Where emulators are lenient, nothing
that was tested against it passes for that reason alone.  One server stands for every region, told
apart by what a request was signed for.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import parse_qsl

from attrs import evolve, frozen
from cryptography.exceptions import InvalidSignature

from kms_core.testing.servers.authority import Authority
from kms_core.testing.servers.aws_keys import (
    DELETION_DAYS,
    ENCRYPTION_ALGORITHMS,
    ENCRYPTS,
    LIST_OF,
    MAC_ALGORITHMS,
    MAX_CIPHERTEXT_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PLAINTEXT_BYTES,
    MIN_DELETION_DAYS,
    ORIGINS,
    SIGNING_ALGORITHMS,
    SPECS,
    STATES,
    SYMMETRIC_DEFAULT,
    USAGES,
    Binding,
    Key,
    Keyring,
    Kind,
    Message,
    Opened,
    Sealed,
    Symmetric,
    metadata,
    rotations,
)
from kms_core.testing.servers.aws_signature import Credentials, Signature, check_signature
from kms_core.testing.servers.aws_sts import Sessions
from kms_core.testing.servers.aws_wire import (
    FAILURES,
    OF_A_KEY,
    Failures,
    Json,
    JsonWire,
    Parameters,
    QueryWire,
    Refusal,
    Wire,
    encoded,
    invalid,
    misnamed,
)
from kms_core.testing.servers.closing import Closed
from kms_core.testing.servers.gate import Gate
from kms_core.testing.servers.http import HttpService, Request, Response
from kms_core.testing.servers.panel import Failure, Order, Panel

REGION: Final = "us-east-1"
MAX_RANDOM_BYTES: Final = 1024
MAX_PAGE: Final = 1000
PAGE: Final = 100

_TARGET: Final = "TrentService."
_CONTENT_TYPE: Final = "application/x-amz-json-1.1"
_REGION: Final = re.compile(r"(?:[a-z]+-){2,3}\d+")

# What may be done in which state: https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html
_IN_USE: Final = frozenset({"Enabled", "Updating"})
_ENABLED: Final = frozenset({"Enabled"})
_SWITCHED: Final = frozenset({"Enabled", "Disabled", "Unavailable"})
_DELETABLE: Final = _SWITCHED | {"PendingImport"}
_TO_BE_DELETED: Final = frozenset({"PendingDeletion", "PendingReplicaDeletion"})
_STAYING: Final = STATES - _TO_BE_DELETED

_FORMS: Final = frozenset({"RAW", "DIGEST", "EXTERNAL_MU"})
_DATA_KEY_BYTES: Final = {"AES_128": 16, "AES_256": 32}
_MATERIALS_LISTED: Final = frozenset({"ALL_KEY_MATERIAL", "ROTATIONS_ONLY"})
_IGNORE_CIPHERTEXT: Final = "IGNORE_CIPHERTEXT"

_KMS: Final = "kms"
_STS: Final = "sts"
_WIRES: Final[Mapping[str, Wire]] = {_KMS: JsonWire(), _STS: QueryWire()}


@frozen
class _Call:
    """A request as far as it can be read before it is known to be genuine."""

    service: str
    operation: str
    region: str
    request: Request

    @classmethod
    def of(cls, request: Request) -> _Call:
        signature = Signature.of(request)
        region = signature.region if signature else ""
        target = request.headers.get("X-Amz-Target")
        if target is None and (action := _form(request.body).get("Action")):
            return cls(_STS, action, region, request)
        operation = (target or "").removeprefix(_TARGET)
        return cls(_KMS, operation, region, request)

    @property
    def parameters(self) -> Parameters:
        """Raises ``Refusal`` if there are none that can be read."""
        if self.service == _STS:
            return Parameters(_form(self.request.body))
        return Parameters.of_json(self.request.body)

    @property
    def noted(self) -> tuple[str, str, Json]:
        """What tests see of it."""
        try:
            members = dict(self.parameters.members)
        except Refusal:
            members = {}
        return self.operation, self.region, members


def _form(body: bytes) -> dict[str, str]:
    return dict(parse_qsl(body.decode("utf-8", "replace")))


_Operation: TypeAlias = Callable[[str, Parameters], Json]


class StrictAwsServer(Closed):
    """AWS KMS and STS on a free loopback port: running when made, and until ``close``.

    ``requests`` are all that arrived, as operation, region and parameters.  The panel's operations
    are AWS's names of them (``Encrypt``, ``AssumeRole``), and it counts those that were signed by
    ``access_key_id`` or for a role that was assumed.  ``KEY_DISABLED`` and its like do nothing to
    ``AssumeRole``.  Policies, grants and quotas do not exist; everything is consistent at once.
    """

    def __init__(self, *, tls: bool = False) -> None:
        self.access_key_id: Final = "AKIDEXAMPLE"
        self.secret_access_key: Final = secrets.token_urlsafe(30)
        self.requests: Final[list[tuple[str, str, Json]]] = []
        self._authority = Authority() if tls else None
        context = self._authority.server_context() if self._authority else None
        self._http = HttpService(self._answer, tls=context)
        self.panel: Final = Panel(FAILURES, self._http.gate)
        self._failures = Failures()
        self._sessions = Sessions(Credentials(self.access_key_id, self.secret_access_key))
        self._keys = Keyring()
        self._managing = threading.RLock()
        self._uses: Mapping[str, _Operation] = {
            "Encrypt": self._encrypt,
            "Decrypt": self._decrypt,
            "GenerateDataKey": self._generate_data_key,
            "ReEncrypt": self._re_encrypt,
            "DescribeKey": self._describe_key,
            "GetPublicKey": self._get_public_key,
            "Sign": self._sign,
            "Verify": self._verify,
            "GenerateMac": self._generate_mac,
            "VerifyMac": self._verify_mac,
            "GenerateRandom": self._generate_random,
        }
        self._manages: Mapping[str, _Operation] = {
            "CreateKey": self._create_key,
            "CreateAlias": self._create_alias,
            "ReplicateKey": self._replicate_key,
            "ListKeys": self._list_keys,
            "EnableKey": self._enable_key,
            "DisableKey": self._disable_key,
            "ScheduleKeyDeletion": self._schedule_key_deletion,
            "CancelKeyDeletion": self._cancel_key_deletion,
            "RotateKeyOnDemand": self._rotate_key_on_demand,
            "ListKeyRotations": self._list_key_rotations,
            "GetKeyRotationStatus": self._get_key_rotation_status,
        }

    @property
    def endpoint_url(self) -> str:
        """Where KMS and STS are, for every region; it stays the same."""
        scheme = "https" if self._authority else "http"
        return "{}://{}:{}".format(scheme, *self._http.address)

    @property
    def ca_file(self) -> Path | None:
        """What clients have to trust; nothing without TLS."""
        return self._authority.ca_file if self._authority else None

    @property
    def gate(self) -> Gate:
        """The line to this server."""
        return self._http.gate

    @property
    def errors(self) -> Sequence[Exception]:
        """Bugs of this server that a request ran into."""
        return self._http.errors

    def create_key(
        self,
        *regions: str,
        spec: str = SYMMETRIC_DEFAULT,
        usage: str = ENCRYPTS,
        multi_region: bool = False,
        alias: str | None = None,
        origin: str = "AWS_KMS",
    ) -> str:
        """Make a key in the first region, us-east-1 if none is given; returns its ARN there.

        The other regions get replicas.  The alias means this key from now on, in all of them.
        Keys of ``EXTERNAL`` origin wait for their material: have it arrive by ``set_state``.
        """
        first, *others = regions or (REGION,)
        kind = Kind(spec, usage, origin, multi_region)
        with self._managing:
            key = self._keys.create(first, kind)
            replicas = [self._keys.replicate(key, region) for region in others]
            if alias is not None:
                for one in (key, *replicas):
                    self._keys.name(alias, one)
        return key.arn

    def set_state(self, arn: str, state: str) -> None:
        """Put the key, in the ARN's region, into this state."""
        if state not in STATES:
            raise ValueError(f"{state!r} is no state of a key, which are {', '.join(STATES)}")
        with self._managing:
            self._keys.find(arn.split(":")[3], arn).state = state

    def expire_sessions(self) -> None:
        """End the sessions of all roles that were assumed so far."""
        self._sessions.expire()

    def close(self) -> None:
        """Stop, and leave no thread and no file behind.  Idempotent."""
        self.gate.close()  # first: who is kept waiting gets no late answer
        self.panel.close()
        self._http.close()
        if self._authority:
            self._authority.close()

    # --- answers ---------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        call = _Call.of(request)
        wire = _WIRES[call.service]
        self.requests.append(call.noted)
        try:
            check_signature(request, call.service, self._sessions.find)
        except Refusal as refusal:
            return wire.refused(refusal)
        order = self.panel.arrived(call.operation)
        if order is not None and call.service == _STS and order.failure in OF_A_KEY:
            order = None
        refusal_ordered = None if order is None else self._failures.refusal(order)
        if refusal_ordered is not None:
            return wire.refused(refusal_ordered)
        return self._result(call, wire, order)

    def _result(self, call: _Call, wire: Wire, order: Order | None) -> Response:
        failure = None if order is None else order.failure
        try:
            content = self._perform(call)
        except Refusal as refusal:
            response = wire.refused(refusal)
        else:
            if failure is Failure.WRONG_KEY:
                content = misnamed(content)
            response = wire.result(call.operation, content)
        if failure is Failure.MALFORMED:
            return wire.result(call.operation, {})
        return evolve(response, broken=failure is Failure.RESET)

    def _perform(self, call: _Call) -> Json:
        if call.request.method != "POST" or call.request.path != "/":
            raise _unknown(f"{call.request.method} {call.request.path}", 404)
        if call.service == _STS:
            return self._assume_role(call)
        if call.request.headers.get("Content-Type") != _CONTENT_TYPE:
            raise _unknown(f"A request that is not {_CONTENT_TYPE}")
        if use := self._uses.get(call.operation):
            return use(call.region, call.parameters)
        if manage := self._manages.get(call.operation):
            with self._managing:
                return manage(call.region, call.parameters)
        raise _unknown(call.operation)

    def _assume_role(self, call: _Call) -> Json:
        if call.operation != "AssumeRole":
            raise _unknown(call.operation)
        return self._sessions.assume_role(call.parameters.members)

    def _key(
        self,
        region: str,
        asked: Parameters,
        name: str = "KeyId",
        *,
        states: frozenset[str] = _IN_USE,
    ) -> Key:
        """The key to be used, which must be in a state for that."""
        _check_privileges(asked)
        key = self._keys.find(region, asked.text(name))
        key.check_state(states)
        return key

    def _managed(
        self,
        region: str,
        asked: Parameters,
        *,
        states: frozenset[str] = STATES,
        plainly: bool = True,
    ) -> Key:
        """The key to be managed; an alias is no name for that."""
        key = self._keys.find(region, asked.text("KeyId"), by_alias=False)
        key.check_state(states, plainly=plainly)
        return key

    # --- encryption ------------------------------------------------------------------------------

    def _encrypt(self, region: str, asked: Parameters) -> Json:
        algorithm = _encryption_algorithm(asked, "EncryptionAlgorithm")
        plaintext = asked.octets("Plaintext", MAX_PLAINTEXT_BYTES)
        context = asked.context("EncryptionContext")
        key = self._key(region, asked)
        sealed = _seal(key, algorithm, plaintext, context)
        _end_dry_run(asked)
        return {
            "CiphertextBlob": encoded(sealed.blob),
            "KeyId": key.arn,
            "EncryptionAlgorithm": algorithm,
        }

    def _decrypt(self, region: str, asked: Parameters) -> Json:
        algorithm = _encryption_algorithm(asked, "EncryptionAlgorithm")
        context = asked.context("EncryptionContext")
        if asked.flag("DryRun") and _IGNORE_CIPHERTEXT in asked.words("DryRunModifiers"):
            self._key(region, asked).cipher(algorithm)
            _end_dry_run(asked)
        blob = asked.octets("CiphertextBlob", MAX_CIPHERTEXT_BYTES)
        key = self._key_of(region, asked, "KeyId", algorithm, blob)
        opened = self._open(key, algorithm, blob, context)
        _end_dry_run(asked)
        return {
            "Plaintext": encoded(opened.plaintext),
            "KeyId": key.arn,
            "EncryptionAlgorithm": algorithm,
            **_material("KeyMaterialId", opened),
        }

    def _generate_data_key(self, region: str, asked: Parameters) -> Json:
        size = _data_key_size(asked)
        context = asked.context("EncryptionContext")
        key = self._key(region, asked)
        plaintext = os.urandom(size)
        sealed = _seal(key, SYMMETRIC_DEFAULT, plaintext, context)
        _end_dry_run(asked)
        return {
            "Plaintext": encoded(plaintext),
            "CiphertextBlob": encoded(sealed.blob),
            "KeyId": key.arn,
            **_material("KeyMaterialId", sealed),
        }

    def _re_encrypt(self, region: str, asked: Parameters) -> Json:
        old_algorithm = _encryption_algorithm(asked, "SourceEncryptionAlgorithm")
        new_algorithm = _encryption_algorithm(asked, "DestinationEncryptionAlgorithm")
        blob = asked.octets("CiphertextBlob", MAX_CIPHERTEXT_BYTES)
        source = self._key_of(region, asked, "SourceKeyId", old_algorithm, blob)
        destination = self._key(region, asked, "DestinationKeyId")
        opened = self._open(source, old_algorithm, blob, asked.context("SourceEncryptionContext"))
        context = asked.context("DestinationEncryptionContext")
        sealed = _seal(destination, new_algorithm, opened.plaintext, context)
        _end_dry_run(asked)
        return {
            "CiphertextBlob": encoded(sealed.blob),
            "SourceKeyId": source.arn,
            "KeyId": destination.arn,
            "SourceEncryptionAlgorithm": old_algorithm,
            "DestinationEncryptionAlgorithm": new_algorithm,
            **_material("SourceKeyMaterialId", opened),
            **_material("DestinationKeyMaterialId", sealed),
        }

    def _key_of(
        self, region: str, asked: Parameters, name: str, algorithm: str, blob: bytes
    ) -> Key:
        """The key to decrypt with: the one named, else the one that made the ciphertext."""
        if asked.has(name):
            return self._key(region, asked, name)
        _check_privileges(asked)
        if algorithm != SYMMETRIC_DEFAULT:
            raise invalid(name, "Member must not be null with an asymmetric algorithm")
        try:
            key = self._keys.find(region, self._keys.owner(blob), by_alias=False)
        except Refusal as refusal:
            if refusal.code != "NotFoundException":
                raise
            message = "The ciphertext refers to a key that does not exist in this region."
            raise Refusal("AccessDeniedException", message) from None
        key.check_state(_IN_USE)
        return key

    def _open(self, key: Key, algorithm: str, blob: bytes, context: bytes) -> Opened:
        cipher = key.cipher(algorithm)
        if isinstance(cipher, Symmetric) and self._keys.owner(blob) != key.id:
            message = "The key does not match the one that was used to encrypt."
            raise Refusal("IncorrectKeyException", message)
        return cipher.open(blob, Binding(key.id, algorithm, context))

    def _generate_random(self, _region: str, asked: Parameters) -> Json:
        _check_privileges(asked)
        size = asked.number("NumberOfBytes", 1, MAX_RANDOM_BYTES)
        return {"Plaintext": encoded(os.urandom(size))}

    # --- signatures and MACs ---------------------------------------------------------------------

    def _sign(self, region: str, asked: Parameters) -> Json:
        algorithm, message = _to_sign(asked)
        key = self._key(region, asked)
        signer = key.signer(algorithm)
        message.check(algorithm)
        signature = signer.sign(message, algorithm)
        _end_dry_run(asked)
        return {"KeyId": key.arn, "Signature": encoded(signature), "SigningAlgorithm": algorithm}

    def _verify(self, region: str, asked: Parameters) -> Json:
        algorithm, message = _to_sign(asked)
        signature = asked.octets("Signature", MAX_CIPHERTEXT_BYTES)
        key = self._key(region, asked)
        signer = key.signer(algorithm)
        message.check(algorithm)
        try:
            signer.verify(message, algorithm, signature)
        except InvalidSignature:
            raise Refusal("KMSInvalidSignatureException", "The signature is not valid.") from None
        _end_dry_run(asked)
        return {"KeyId": key.arn, "SignatureValid": True, "SigningAlgorithm": algorithm}

    def _generate_mac(self, region: str, asked: Parameters) -> Json:
        algorithm = asked.choice("MacAlgorithm", MAC_ALGORITHMS)
        message = asked.octets("Message", MAX_MESSAGE_BYTES)
        key = self._key(region, asked)
        mac = key.authenticator(algorithm).mac(message, algorithm)
        _end_dry_run(asked)
        return {"KeyId": key.arn, "Mac": encoded(mac), "MacAlgorithm": algorithm}

    def _verify_mac(self, region: str, asked: Parameters) -> Json:
        algorithm = asked.choice("MacAlgorithm", MAC_ALGORITHMS)
        message = asked.octets("Message", MAX_MESSAGE_BYTES)
        mac = asked.octets("Mac", MAX_CIPHERTEXT_BYTES)
        key = self._key(region, asked)
        try:
            key.authenticator(algorithm).verify(message, algorithm, mac)
        except InvalidSignature:
            raise Refusal("KMSInvalidMacException", "The MAC is not valid.") from None
        _end_dry_run(asked)
        return {"KeyId": key.arn, "MacValid": True, "MacAlgorithm": algorithm}

    # --- keys ------------------------------------------------------------------------------------

    def _describe_key(self, region: str, asked: Parameters) -> Json:
        return self._told(self._key(region, asked, states=STATES))

    def _told(self, key: Key) -> Json:
        return {"KeyMetadata": metadata(key, self._keys.replicas(key))}

    def _get_public_key(self, region: str, asked: Parameters) -> Json:
        key = self._key(region, asked)
        kind = key.kind
        return {
            "KeyId": key.arn,
            "PublicKey": encoded(key.public_key()),
            "CustomerMasterKeySpec": kind.spec,
            "KeySpec": kind.spec,
            "KeyUsage": kind.usage,
            LIST_OF[kind.usage]: list(kind.algorithms),
        }

    def _create_key(self, region: str, asked: Parameters) -> Json:
        older = asked.choice("CustomerMasterKeySpec", SPECS, SYMMETRIC_DEFAULT)
        kind = Kind(
            spec=asked.choice("KeySpec", SPECS, older),
            usage=asked.choice("KeyUsage", USAGES, ENCRYPTS),
            origin=asked.choice("Origin", ORIGINS, "AWS_KMS"),
            multi_region=asked.flag("MultiRegion"),
        )
        if kind.origin not in {"AWS_KMS", "EXTERNAL"}:
            raise Refusal("ValidationException", "There are no custom key stores here.")
        return self._told(self._keys.create(region, kind, _description(asked)))

    def _create_alias(self, region: str, asked: Parameters) -> Json:
        alias = asked.text("AliasName", 256)
        key = self._keys.find(region, asked.text("TargetKeyId"), by_alias=False)
        key.check_state(_STAYING)
        self._keys.add_alias(alias, key)
        return {}

    def _replicate_key(self, region: str, asked: Parameters) -> Json:
        where = asked.text("ReplicaRegion", 32)
        if not _REGION.fullmatch(where):
            raise invalid("ReplicaRegion", "Member must be the name of a region")
        key = self._managed(region, asked, states=_ENABLED)
        replica = self._keys.replicate(key, where, _description(asked))
        return {"ReplicaKeyMetadata": self._told(replica)["KeyMetadata"]}

    def _list_keys(self, region: str, asked: Parameters) -> Json:
        keys = [{"KeyArn": key.arn, "KeyId": key.id} for key in self._keys.in_region(region)]
        return _page(asked, "Keys", keys, "KeyId")

    def _enable_key(self, region: str, asked: Parameters) -> Json:
        self._managed(region, asked, states=_SWITCHED).state = "Enabled"
        return {}

    def _disable_key(self, region: str, asked: Parameters) -> Json:
        self._managed(region, asked, states=_SWITCHED).state = "Disabled"
        return {}

    def _schedule_key_deletion(self, region: str, asked: Parameters) -> Json:
        days = asked.number("PendingWindowInDays", MIN_DELETION_DAYS, DELETION_DAYS, DELETION_DAYS)
        key = self._managed(region, asked, states=_DELETABLE)
        key.deletion_days = days
        answer = {"KeyId": key.arn, "PendingWindowInDays": days}
        if key.is_primary and self._keys.replicas(key):  # it stays for as long as they do
            key.state = "PendingReplicaDeletion"
            return answer | {"KeyState": key.state}
        key.state = "PendingDeletion"
        key.deletion = time.time() + days * 24 * 3600
        return answer | {"KeyState": key.state, "DeletionDate": key.deletion}

    def _cancel_key_deletion(self, region: str, asked: Parameters) -> Json:
        key = self._managed(region, asked, states=_TO_BE_DELETED, plainly=False)
        key.state = "Disabled"
        return {"KeyId": key.arn}

    def _rotate_key_on_demand(self, region: str, asked: Parameters) -> Json:
        key = self._managed(region, asked, states=_ENABLED)
        key.rotate()
        return {"KeyId": key.id}

    def _list_key_rotations(self, region: str, asked: Parameters) -> Json:
        included = asked.choice("IncludeKeyMaterial", _MATERIALS_LISTED, "ROTATIONS_ONLY")
        key = self._managed(region, asked)
        entries = rotations(key.rotating(), key.id, with_first=included == "ALL_KEY_MATERIAL")
        return _page(asked, "Rotations", entries, "KeyMaterialId")

    def _get_key_rotation_status(self, region: str, asked: Parameters) -> Json:
        key = self._managed(region, asked)
        key.rotating()
        return {"KeyId": key.id, "KeyRotationEnabled": False}


def _unknown(what: str, status: int = 400) -> Refusal:
    return Refusal("UnknownOperationException", f"{what} is not an operation here.", status)


def _encryption_algorithm(asked: Parameters, name: str) -> str:
    return asked.choice(name, ENCRYPTION_ALGORITHMS, SYMMETRIC_DEFAULT)


def _check_privileges(asked: Parameters) -> None:
    """Raises ``Refusal`` if the caller counts on a grant or on being an enclave."""
    if asked.words("GrantTokens"):
        raise Refusal("InvalidGrantTokenException", "There are no grants here.")
    if asked.has("Recipient"):
        raise Refusal("ValidationException", "There are no enclaves here.")


def _seal(key: Key, algorithm: str, plaintext: bytes, context: bytes) -> Sealed:
    return key.cipher(algorithm).seal(plaintext, Binding(key.id, algorithm, context))


def _material(name: str, made: Sealed | Opened) -> Json:
    """Which material it was; only symmetric keys have several."""
    return {} if made.material_id is None else {name: made.material_id}


def _data_key_size(asked: Parameters) -> int:
    if asked.has("KeySpec") == asked.has("NumberOfBytes"):
        message = "Please specify either number of bytes or key spec."
        raise Refusal("ValidationException", message)
    if asked.has("KeySpec"):
        return _DATA_KEY_BYTES[asked.choice("KeySpec", _DATA_KEY_BYTES)]
    return asked.number("NumberOfBytes", 1, MAX_RANDOM_BYTES)


def _to_sign(asked: Parameters) -> tuple[str, Message]:
    algorithm = asked.choice("SigningAlgorithm", SIGNING_ALGORITHMS)
    kind = asked.choice("MessageType", _FORMS, "RAW")
    return algorithm, Message(asked.octets("Message", MAX_MESSAGE_BYTES), kind)


def _description(asked: Parameters) -> str:
    return asked.text("Description", 8192) if asked.members.get("Description") else ""


def _end_dry_run(asked: Parameters) -> None:
    """Raises ``Refusal``, which tells success, if nothing was to be done in earnest."""
    if asked.flag("DryRun"):
        message = "The request would have succeeded, but the DryRun option is set."
        raise Refusal("DryRunOperationException", message)


def _page(asked: Parameters, name: str, entries: Iterable[Json], by: str) -> Json:
    """The entries from the marker on, as many as were asked for."""
    limit = asked.number("Limit", 1, MAX_PAGE, PAGE)
    rest = list(entries)
    if asked.has("Marker"):
        places = [entry[by] for entry in rest]
        try:
            rest = rest[places.index(_unmarked(asked.text("Marker", 1024))) + 1 :]
        except ValueError:
            raise Refusal("InvalidMarkerException", "The marker is not valid.") from None
    page = rest[:limit]
    if len(rest) <= limit:
        return {name: page, "Truncated": False}
    return {name: page, "Truncated": True, "NextMarker": encoded(page[-1][by].encode())}


def _unmarked(marker: str) -> str:
    """What the last page ended with; raises ``ValueError`` if none ended with this marker."""
    return base64.b64decode(marker, validate=True).decode()
