"""What python-pkcs11 raises, and the class each leaves the plugin as.

By exception class, never by message.  ``STALE`` is mended first: sessions and handles are made anew
and the call is repeated once; what is raised then is judged by the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from kms_core import (
    AccessDenied,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    Unavailable,
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _table(rows: Mapping[type[KMSError], str]) -> Mapping[str, type[KMSError]]:
    return MappingProxyType({name: kind for kind, text in rows.items() for name in text.split()})


#: Sessions and handles that no longer hold, or a token that went away and may be back.
STALE: Final = _names(
    """
    SessionHandleInvalid SessionClosed ObjectHandleInvalid KeyHandleInvalid
    UnwrappingKeyHandleInvalid WrappingKeyHandleInvalid UserNotLoggedIn
    OperationActive OperationNotInitialized
    DeviceRemoved TokenNotPresent TokenNotRecognised SlotIDInvalid NoSuchToken
    """
)

#: What some modules say when they have lost their token; while unwrapping it may mean anything.
UNWELL: Final = _names("GeneralError DeviceError FunctionFailed")

#: Raised while unwrapping these may mean a bad ciphertext: every module has its own idea.
DOUBTFUL: Final = _names(
    """
    GeneralError DeviceError FunctionFailed ArgumentsBad DataInvalid DataLenRange
    MechanismParamInvalid EncryptedDataInvalid EncryptedDataLenRange
    WrappedKeyInvalid WrappedKeyLenRange PKCS11Error AttributeValueInvalid
    TemplateInconsistent
    """
)

BY_CLASS: Final = _table(
    {
        Unavailable: """
            DeviceError DeviceMemory DeviceRemoved TokenNotPresent TokenNotRecognised HostMemory
            FunctionFailed FunctionCancelled GeneralError SessionCount SlotIDInvalid NoSuchToken
            RandomNoRNG SessionExists OperationActive OperationNotInitialized
            SessionHandleInvalid SessionClosed ObjectHandleInvalid KeyHandleInvalid
            UnwrappingKeyHandleInvalid WrappingKeyHandleInvalid PKCS11Error
        """,
        AccessDenied: """
            PinIncorrect PinInvalid PinLenRange PinExpired PinLocked PinTooWeak
            UserPinNotInitialized UserNotLoggedIn AnotherUserAlreadyLoggedIn UserTooManyTypes
            FunctionRejected SessionReadOnly SessionReadOnlyExists SessionReadWriteSOExists
            TokenWriteProtected AttributeSensitive
        """,
        KeyNotFound: "NoSuchKey MultipleObjectsReturned MultipleTokensReturned",
        KeyDisabled: """
            KeyNotWrappable KeyUnextractable KeyTypeInconsistent KeySizeRange KeyIndigestible
            WrappingKeySizeRange WrappingKeyTypeInconsistent
            UnwrappingKeySizeRange UnwrappingKeyTypeInconsistent
        """,
        InvalidCiphertext: """
            EncryptedDataInvalid EncryptedDataLenRange WrappedKeyInvalid WrappedKeyLenRange
        """,
        InvalidRequest: """
            MechanismInvalid MechanismParamInvalid FunctionNotSupported ArgumentsBad
            DataInvalid DataLenRange AttributeTypeInvalid AttributeValueInvalid AttributeReadOnly
            TemplateIncomplete TemplateInconsistent DomainParamsInvalid PublicKeyInvalid
            SignatureInvalid SignatureLenRange
        """,
    }
)

_ADVICE: Final[Mapping[type[KMSError], str]] = {
    Unavailable: "check that the token is there and its service runs",
    AccessDenied: "check pin and the key's attributes; a PIN that was refused is not tried again",
    KeyNotFound: "check key, key_id and token, and that exactly one key answers to them",
    KeyDisabled: "the key's attributes do not permit this",
    InvalidCiphertext: "it is altered, or belongs to another key or another context",
    InvalidRequest: "the token does not do this with this key: see mechanism",
}
#: After these the PIN must not be tried again: three wrong ones lock most tokens.
PIN_REFUSED: Final = _names("PinIncorrect PinInvalid PinLenRange PinExpired PinLocked")


def class_of(exc: BaseException, names: Mapping[str, object] | frozenset[str]) -> str | None:
    """The nearest class of ``exc`` that is among ``names``."""
    return next((kind.__name__ for kind in type(exc).__mro__ if kind.__name__ in names), None)


def is_stale(exc: BaseException, *, unwrapping: bool = False) -> bool:
    """Whether new sessions and handles may mend this."""
    name = type(exc).__name__
    return name in STALE or (name in UNWELL and not unwrapping)


def is_doubtful(exc: BaseException) -> bool:
    """Whether this, raised while unwrapping, may be the ciphertext's fault."""
    return type(exc).__name__ in DOUBTFUL


def translate(exc: Exception, operation: str, key: str) -> KMSError:
    """What ``exc``, raised in ``operation`` on ``key``, means.  Its text is not repeated."""
    name = class_of(exc, BY_CLASS)
    kind = BY_CLASS[name] if name else Unavailable
    if kind is InvalidCiphertext:
        return refused(key)
    said = type(exc).__name__
    return kind(f"{operation} with {key}: the module reports {said}; {_ADVICE[kind]}")


def refused(key: str) -> InvalidCiphertext:
    """The one error of every ciphertext that does not authenticate, whoever noticed it."""
    return InvalidCiphertext(
        f"the ciphertext does not open with {key}: {_ADVICE[InvalidCiphertext]}"
    )
