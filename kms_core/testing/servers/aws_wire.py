"""What AWS puts on the wire: parameters, results and refusals, and the failures a panel orders.

Nothing here knows a key.  KMS speaks JSON 1.1 and STS the query protocol with answers in XML; a
refusal has the code that KMS gives it, and STS says the same in its own words.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import math
import uuid
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol, TypeAlias
from xml.sax.saxutils import escape

from attrs import field, frozen

from kms_core.testing.servers.http import Response
from kms_core.testing.servers.panel import Failure, Order

Json: TypeAlias = dict[str, Any]

#: Everything but checksums, which AWS KMS does not have.
FAILURES: Final = frozenset(Failure) - {Failure.CORRUPT_CRC}

MAX_CONTEXT_BYTES: Final = 8192


class Refusal(Exception):
    """What the service answers instead of a result; ``code`` as KMS has it."""

    def __init__(
        self, code: str, message: str, status: int = 400, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.headers: Mapping[str, str] = headers or {}


def invalid(name: str, constraint: str) -> Refusal:
    """The refusal of a parameter that is missing, or outside its limits."""
    where = name[0].lower() + name[1:]
    return Refusal(
        "ValidationException",
        f"1 validation error detected: Value at '{where}' failed to satisfy constraint: "
        f"{constraint}",
    )


def _not_serialised(name: str) -> Refusal:
    return Refusal("SerializationException", f"The value of {name} cannot be read.")


# --- parameters ----------------------------------------------------------------------------------


@frozen
class Parameters:
    """The parameters of one request; every reader refuses what the service would refuse."""

    members: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of_json(cls, body: bytes) -> Parameters:
        """Raises ``Refusal`` unless ``body`` is a JSON object."""
        try:
            members = json.loads(body)
        except ValueError:
            members = None
        if not isinstance(members, dict):
            raise _not_serialised("the request")
        return cls(members)

    def has(self, name: str) -> bool:
        """Whether there is a value; ``null`` is none."""
        return self.members.get(name) is not None

    def text(self, name: str, largest: int = 2048) -> str:
        """Required text of 1 to ``largest`` characters."""
        value: str | None = self._optional(name, str)
        if value is None:
            raise invalid(name, "Member must not be null")
        _check_length(name, len(value), largest)
        return value

    def octets(self, name: str, largest: int) -> bytes:
        """Required bytes, 1 to ``largest`` of them."""
        value: str | None = self._optional(name, str)
        if value is None:
            raise invalid(name, "Member must not be null")
        try:
            octets = base64.b64decode(value, validate=True)
        except binascii.Error:
            raise _not_serialised(name) from None
        _check_length(name, len(octets), largest)
        return octets

    def number(self, name: str, smallest: int, largest: int, default: int | None = None) -> int:
        """A number within these limits; required if there is no default."""
        value: int | None = self._optional(name, int)
        if value is None:
            value = default
        if value is None:
            raise invalid(name, "Member must not be null")
        if not smallest <= value <= largest:
            raise invalid(name, f"Member must have value between {smallest} and {largest}")
        return value

    def flag(self, name: str) -> bool:
        """Yes or no; nothing is no."""
        return bool(self._optional(name, bool))

    def choice(self, name: str, allowed: Collection[str], default: str | None = None) -> str:
        """One of the allowed words; required if there is no default."""
        value: str | None = self._optional(name, str)
        if value is None:
            value = default
        if value is None:
            raise invalid(name, "Member must not be null")
        if value not in allowed:
            raise invalid(name, f"Member must satisfy enum value set: {sorted(allowed)}")
        return value

    def words(self, name: str) -> list[str]:
        """A list of texts, empty if there is none."""
        value: list[Any] | None = self._optional(name, list)
        if not all(isinstance(word, str) for word in value or ()):
            raise _not_serialised(name)
        return value or []

    def context(self, name: str) -> bytes:
        """An encryption context in the one encoding it has; no pairs are no bytes."""
        pairs: dict[str, Any] = self._optional(name, dict) or {}
        if not all(isinstance(value, str) for value in pairs.values()):
            raise _not_serialised(name)
        if len(json.dumps(pairs)) > MAX_CONTEXT_BYTES:
            raise invalid(name, f"Member must have length at most {MAX_CONTEXT_BYTES}")
        return json.dumps(sorted(pairs.items())).encode() if pairs else b""

    def _optional(self, name: str, kind: type) -> Any:
        """The value, or None.  Its type is checked: JSON decides what it is, not the caller."""
        value = self.members.get(name)
        if value is not None and type(value) is not kind:
            raise _not_serialised(name)
        return value


def _check_length(name: str, length: int, largest: int) -> None:
    if not 1 <= length <= largest:
        raise invalid(name, f"Member must have length between 1 and {largest}")


def encoded(octets: bytes) -> str:
    """Bytes as they travel."""
    return base64.b64encode(octets).decode()


# --- answers -------------------------------------------------------------------------------------


class Wire(Protocol):
    """How one of the services words its answers."""

    def result(self, operation: str, content: Json) -> Response:
        """A success."""

    def refused(self, refusal: Refusal) -> Response:
        """An error."""


class JsonWire:
    """KMS: JSON 1.1."""

    def result(self, operation: str, content: Json) -> Response:  # noqa: ARG002  JSON has no frame
        """The content as it is."""
        return self._response(200, content, {})

    def refused(self, refusal: Refusal) -> Response:
        """Its code and message."""
        content = {"__type": refusal.code, "message": str(refusal)}
        return self._response(refusal.status, content, refusal.headers)

    def _response(self, status: int, content: Json, headers: Mapping[str, str]) -> Response:
        common = {
            "Content-Type": "application/x-amz-json-1.1",
            "x-amzn-RequestId": str(uuid.uuid4()),
        }
        return Response(status, json.dumps(content).encode(), common | dict(headers))


class QueryWire:
    """STS: XML."""

    NAMESPACE: Final = "https://sts.amazonaws.com/doc/2011-06-15/"

    #: Code and status of what STS calls otherwise than KMS.
    _OWN_WORDS: Final[Mapping[str, tuple[str, int]]] = {
        "AccessDeniedException": ("AccessDenied", 403),
        "ExpiredTokenException": ("ExpiredToken", 403),
        "IncompleteSignatureException": ("IncompleteSignature", 400),
        "InvalidSignatureException": ("SignatureDoesNotMatch", 403),
        "KMSInternalException": ("InternalFailure", 500),
        "MissingAuthenticationTokenException": ("MissingAuthenticationToken", 403),
        "ServiceUnavailableException": ("ServiceUnavailable", 503),
        "ThrottlingException": ("Throttling", 400),
        "UnknownOperationException": ("InvalidAction", 400),
        "UnrecognizedClientException": ("InvalidClientTokenId", 403),
        "ValidationException": ("ValidationError", 400),
    }

    def result(self, operation: str, content: Json) -> Response:
        """The content in its frame."""
        return self._response(200, f"{operation}Response", {f"{operation}Result": content}, {})

    def refused(self, refusal: Refusal) -> Response:
        """Its code, in the words of STS, and message."""
        code, status = self._OWN_WORDS.get(refusal.code, (refusal.code, refusal.status))
        error = {"Type": "Sender" if status < 500 else "Receiver", "Code": code}
        content = {"Error": error | {"Message": str(refusal)}}
        return self._response(status, "ErrorResponse", content, refusal.headers)

    def _response(
        self, status: int, root: str, content: Json, headers: Mapping[str, str]
    ) -> Response:
        request_id = str(uuid.uuid4())
        inside = _xml(content | {"ResponseMetadata": {"RequestId": request_id}})
        body = f'<{root} xmlns="{self.NAMESPACE}">{inside}</{root}>'
        common = {"Content-Type": "text/xml", "x-amzn-RequestId": request_id}
        return Response(status, body.encode(), common | dict(headers))


def _xml(content: Json) -> str:
    parts = (
        f"<{name}>{_xml(value) if isinstance(value, dict) else escape(str(value))}</{name}>"
        for name, value in content.items()
    )
    return "".join(parts)


# --- failures on cue -----------------------------------------------------------------------------

#: Those that are about a key, of which STS has none.
OF_A_KEY: Final = frozenset({Failure.KEY_DISABLED, Failure.KEY_NOT_FOUND, Failure.WRONG_KEY})

#: The service itself is unwell, or what stands before it; ``Failures`` lets them take turns.
_OUTAGES: Final = (("KMSInternalException", 500), ("ServiceUnavailableException", 503))

_REFUSALS: Final[Mapping[Failure, tuple[str, str]]] = {
    Failure.ACCESS_DENIED: ("AccessDeniedException", "The caller is not authorized to do this."),
    Failure.KEY_DISABLED: ("DisabledException", "The key is disabled."),
    Failure.KEY_NOT_FOUND: ("NotFoundException", "The key does not exist."),
}

_KEY_NAMES: Final = frozenset({"Arn", "KeyArn", "KeyId", "SourceKeyId"})


class Failures:
    """What one server answers to orders of its panel.  Thread-safe."""

    def __init__(self) -> None:
        self._outages = itertools.cycle(_OUTAGES)

    def refusal(self, order: Order) -> Refusal | None:
        """The refusal that takes the place of a result, if this failure is of that sort."""
        if order.failure is Failure.THROTTLE:
            message = "You have exceeded the rate at which you may call KMS."
            return Refusal("ThrottlingException", message, headers=_wait(order.seconds))
        if order.failure is Failure.SERVER_ERROR:
            code, status = next(self._outages)
            return Refusal(code, "The service is unwell: try again.", status)
        if order.failure in _REFUSALS:
            return Refusal(*_REFUSALS[order.failure])
        return None


def _wait(seconds: float | None) -> Mapping[str, str]:
    """How long to wait, in whole seconds for everybody and in milliseconds for AWS's own SDKs."""
    if seconds is None:
        return {}
    return {"Retry-After": str(math.ceil(seconds)), "x-amz-retry-after": f"{seconds * 1e3:.0f}"}


def misnamed(content: Any) -> Any:
    """The same content, about a key that nobody has."""
    return _renamed(content, str(uuid.uuid4()))


def _renamed(content: Any, other: str) -> Any:
    if isinstance(content, list):
        return [_renamed(item, other) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        name: _other_name(value, other) if name in _KEY_NAMES else _renamed(value, other)
        for name, value in content.items()
    }


def _other_name(name: str, other: str) -> str:
    """The name of another key in the same form: an ARN or a bare key id."""
    place, slash, _ = name.rpartition("/")
    return f"{place}{slash}{other}"
