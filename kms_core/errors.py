"""Every failure the library reports, and what each one means for the next step.

    KMSError
    ├── ServiceError                    one instance could not do it
    │   ├── Unavailable                 5xx, refused, reset, session lost, malformed answer
    │   │   └── DeadlineExceeded        no answer in time
    │   ├── Throttled                   over quota; ``retry_after`` seconds if the service said so
    │   ├── AccessDenied                credentials or permission
    │   ├── KeyNotFound
    │   ├── KeyDisabled                 disabled, expired, pending deletion
    │   ├── BreakerOpen                 the breaker refused the call; the service was not asked
    │   └── ProviderBug                 a plugin broke the contract
    ├── AllInstancesFailed              an ExceptionGroup of one error per attempt
    ├── InvalidCiphertext               a direct decrypt did not authenticate
    ├── EnvelopeError
    │   ├── FormatError                 not an envelope, or a damaged one (no key was used)
    │   │   └── UnsupportedVersion      a version, kind or suite this reader does not know
    │   ├── IntegrityError              altered, foreign, or another context
    │   │   └── NoMatchingRecipient     no configured key is among the recipients
    │   └── RewrapConflict              somebody else rewrote the capsule meanwhile
    ├── InvalidRequest                  the caller asked for something impossible
    ├── UnsupportedOperation            the provider lacks that capability
    ├── PolicyDenied                    a wrapper or a policy refused
    └── ConfigError                     the configuration is wrong
        └── PluginError                 a needed plugin is missing or broken

Routing, retry and breaker read the three class attributes and nothing else, so a provider decides
what happens next by choosing the class (docs/adr/0002).  Messages never carry plaintext, key
material or context values.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from typing import Self

    from kms_core.types import Attempt


#: Set it around a request, and every event and error of that request carries it.
correlation_id: Final[ContextVar[str | None]] = ContextVar("kms_core_correlation_id", default=None)


class KMSError(Exception):
    """Base of everything the library raises on purpose.

    ``code`` is stable and meant for programs; the message is for people.  ``instance``,
    ``operation``, ``key`` and ``correlation_id`` are filled in by the core where they are known.
    """

    code: ClassVar[str] = "kms_error"
    #: May the same request be put to another instance?
    try_next: ClassVar[bool] = False
    #: Is this evidence that the instance is unwell?
    counts: ClassVar[bool] = False
    #: May the same request be repeated on the same instance?
    retryable: ClassVar[bool] = False

    instance: str | None = None
    operation: str | None = None
    key: str | None = None
    correlation_id: str | None = None

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.correlation_id = correlation_id.get()

    def __str__(self) -> str:
        where = ".".join(part for part in (self.instance, self.operation) if part)
        message = super().__str__()
        return f"{where}: {message}" if where else message


class ServiceError(KMSError):
    """One instance could not do what was asked; another one may."""

    code = "service_error"
    try_next = True


class Unavailable(ServiceError):
    """The service could not be reached, or its answer made no sense."""

    code = "unavailable"
    counts = True
    retryable = True


class DeadlineExceeded(Unavailable):
    """No answer arrived within the time allowed."""

    code = "deadline_exceeded"


class Throttled(ServiceError):
    """Over quota.  ``retry_after`` is in seconds, ``None`` where the service did not say."""

    code = "throttled"
    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AccessDenied(ServiceError):
    """Missing, expired or insufficient credentials."""

    code = "access_denied"


class KeyNotFound(ServiceError):
    """No such key, or none that these credentials may see."""

    code = "key_not_found"


class KeyDisabled(ServiceError):
    """The key exists and may not be used: disabled, expired, pending import or deletion."""

    code = "key_disabled"


class BreakerOpen(ServiceError):
    """The circuit breaker refused; ``retry_after`` is when it will let a probe through."""

    code = "breaker_open"

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ProviderBug(ServiceError):
    """A plugin raised something undocumented or answered with the wrong type."""

    code = "provider_bug"
    counts = True


class InvalidCiphertext(KMSError):
    """Authentication failed: altered ciphertext, another key or another context."""

    code = "invalid_ciphertext"


class InvalidRequest(KMSError):
    """The caller passed something that no instance could act on."""

    code = "invalid_request"


class UnsupportedOperation(KMSError):
    """The provider does not have this capability."""

    code = "unsupported_operation"


class PolicyDenied(KMSError):
    """A wrapper or a configured policy refused the call."""

    code = "policy_denied"


class ConfigError(KMSError):
    """The configuration cannot be used; the message names file, table and key."""

    code = "config_error"


class PluginError(ConfigError):
    """A plugin that the configuration needs is missing, incompatible or broken."""

    code = "plugin_error"


class EnvelopeError(KMSError):
    """Base of what the envelope layer raises."""

    code = "envelope_error"


class FormatError(EnvelopeError):
    """These bytes are not a well-formed envelope.  Raised before any key is used."""

    code = "format_error"


class UnsupportedVersion(FormatError):
    """A version, kind or suite that this reader does not accept."""

    code = "unsupported_version"


class IntegrityError(EnvelopeError):
    """Authentication failed.  Every cryptographic failure of an envelope looks like this."""

    code = "integrity_error"

    def __init__(
        self,
        message: str = "the envelope is altered or foreign, or the context differs",
    ) -> None:
        super().__init__(message)


class NoMatchingRecipient(IntegrityError):
    """None of the recipients belongs to a configured key; ``key_uris`` lists those seen."""

    code = "no_matching_recipient"

    def __init__(self, key_uris: Sequence[str], *, more_needed: str = "") -> None:
        self.key_uris = tuple(key_uris)
        holds = f"enough keys{more_needed}" if more_needed else "any key"
        super().__init__(
            f"no configured instance holds {holds} of this envelope (foreign or altered); "
            f"it names {', '.join(self.key_uris)}"
        )

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[str, ...]]]:
        return type(self), (self.key_uris,)


class RewrapConflict(EnvelopeError):
    """The capsule was rewritten by somebody else while this rewrap was under way."""

    code = "rewrap_conflict"


class AllInstancesFailed(KMSError, ExceptionGroup[KMSError]):
    """No instance could do it.  ``attempts`` keeps each one's name, duration and error."""

    code = "all_instances_failed"
    attempts: tuple[Attempt, ...]

    def __new__(cls, message: str, attempts: Sequence[Attempt]) -> Self:  # noqa: D102
        group = super().__new__(cls, message, [attempt.error for attempt in attempts])
        group.attempts = tuple(attempts)
        return group

    def __init__(self, message: str, attempts: Sequence[Attempt]) -> None:
        super().__init__(message, [attempt.error for attempt in attempts])

    def __str__(self) -> str:
        return f"{self.message}: " + "; ".join(str(error) for error in self.exceptions)

    def derive(self, excs: Sequence[Exception], /) -> AllInstancesFailed:  # type: ignore[override]
        """The part of the group that ``except*`` and ``split`` ask for."""
        kept = [attempt for attempt in self.attempts if attempt.error in excs]
        return AllInstancesFailed(self.message, kept)

    def __reduce__(self) -> tuple[type[Self], tuple[str, tuple[Attempt, ...]]]:
        return type(self), (self.message, self.attempts)
