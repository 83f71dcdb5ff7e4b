"""What AWS and its SDK report, and the class each report leaves the plugin as.

The two tables below are the documentation.  They are read by error code and by exception class,
never by message text: vendor texts may repeat signed headers, tokens or parameters, so none of
them enters a message of ours, and an exception whose text may do so is not chained either.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen

from kms_core import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    ServiceError,
    Throttled,
    Unavailable,
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _table(rows: Mapping[type[KMSError], str]) -> Mapping[str, type[KMSError]]:
    return MappingProxyType({name: kind for kind, text in rows.items() for name in text.split()})


#: By error code.  A code that is not here, such as the bare status of an answer without a body, is
#: judged by its HTTP status.
BY_CODE: Final = _table(
    {
        Unavailable: """
            KMSInternalException DependencyTimeoutException KeyUnavailableException
            InternalFailure InternalError InternalServerError InternalServiceError
            ServiceUnavailable ServiceUnavailableException
            RequestTimeout RequestTimeoutException PriorRequestNotComplete
            CloudHsmClusterInvalidConfigurationException CloudHsmClusterNotActiveException
            CloudHsmClusterNotFoundException CloudHsmClusterNotRelatedException
            CustomKeyStoreInvalidStateException CustomKeyStoreNotFoundException
            XksKeyInvalidConfigurationException XksKeyNotFoundException
            XksProxyIncorrectAuthenticationCredentialException
            XksProxyInvalidConfigurationException XksProxyInvalidResponseException
            XksProxyUriUnreachableException
            XksProxyVpcEndpointServiceInvalidConfigurationException
            XksProxyVpcEndpointServiceNotFoundException
            IDPCommunicationError IDPCommunicationErrorException
        """,
        Throttled: """
            ThrottlingException Throttling ThrottledException RequestThrottled
            RequestThrottledException TooManyRequestsException RequestLimitExceeded
            BandwidthLimitExceeded SlowDown
        """,
        AccessDenied: """
            AccessDeniedException AccessDenied NotAuthorized UnauthorizedException
            UnrecognizedClientException InvalidClientTokenId InvalidAccessKeyId AuthFailure
            MissingAuthenticationToken MissingAuthenticationTokenException
            IncompleteSignature IncompleteSignatureException
            InvalidSignatureException SignatureDoesNotMatch
            RequestExpired RequestTimeTooSkewed
            ExpiredToken ExpiredTokenException InvalidToken InvalidIdentityToken
            OptInRequired SubscriptionRequiredException RegionDisabledException
            InvalidGrantTokenException IDPRejectedClaim IDPRejectedClaimException
        """,
        KeyNotFound: "NotFoundException",
        # KMSInvalidStateException: pending deletion or import, being created or, for keys outside
        # KMS, any trouble of their store; the code alone does not tell which.
        KeyDisabled: "DisabledException KMSInvalidStateException",
        InvalidCiphertext: "InvalidCiphertextException IncorrectKeyException",
        InvalidRequest: """
            ValidationException SerializationException InvalidParameterException
            InvalidKeyUsageException UnsupportedOperationException UnknownOperationException
            InvalidArnException InvalidAliasNameException InvalidGrantIdException
            InvalidMarkerException MalformedPolicyDocumentException TagException
            AlreadyExistsException ConflictException LimitExceededException
            IncorrectKeyMaterialException ExpiredImportTokenException InvalidImportTokenException
        """,
    }
)

#: By exception class or the nearest of its bases, by name so that no SDK is imported for a table.
BY_CLASS: Final = _table(
    {
        DeadlineExceeded: "ReadTimeoutError ConnectTimeoutError",
        # Refused, unknown host, reset, proxy, TLS; credentials whose source is out of reach.
        Unavailable: """
            ConnectionError HTTPClientError IncompleteReadError
            CredentialRetrievalError MetadataRetrievalError
        """,
        AccessDenied: """
            NoCredentialsError PartialCredentialsError UnknownCredentialError
            InfiniteLoopConfigError RefreshWithMFAUnsupportedError
            ProfileNotFound ConfigNotFound ConfigParseError InvalidConfigError
            NoAuthTokenError TokenRetrievalError UnknownTokenProviderError SSOError LoginError
        """,
        InvalidRequest: "ParamValidationError",
        ConfigError: """
            BaseEndpointResolverError EndpointProviderError InvalidEndpointConfigurationError
            InvalidRegionError InvalidProxiesConfigError InvalidRetryConfigurationError
            InvalidDefaultsMode
        """,
        ServiceError: "BotoCoreError",
    }
)

#: Verdicts on a signature or a MAC; where one was to be checked they are the answer.
NOT_AUTHENTIC: Final = _names("KMSInvalidSignatureException KMSInvalidMacException")

#: What asking a key for something that keys of its kind do not do may be answered with.
MISFIT: Final = _names("InvalidKeyUsageException UnsupportedOperationException ValidationException")

#: After these the client is of no use: only credentials that are looked up anew can help.
_STALE: Final = _names(
    """
    UnrecognizedClientException InvalidClientTokenId InvalidAccessKeyId
    ExpiredToken ExpiredTokenException InvalidToken
    NoCredentialsError PartialCredentialsError NoAuthTokenError TokenRetrievalError
    UnauthorizedSSOTokenError SSOTokenLoadError LoginRefreshRequired LoginTokenLoadError
    """
)

#: Codes and classes whose text names keys, hosts and principals, and nothing that is secret.
_CHAINED: Final = _names(
    """
    AccessDeniedException NotFoundException DisabledException KMSInvalidStateException
    KMSInternalException DependencyTimeoutException KeyUnavailableException
    CustomKeyStoreInvalidStateException CloudHsmClusterNotActiveException
    XksProxyUriUnreachableException ThrottlingException
    ConnectionError ReadTimeoutError ConnectionClosedError
    """
)

_ADVICE: Final[Mapping[type[KMSError], str]] = {
    DeadlineExceeded: "check the network, or raise connect_timeout or attempt_timeout",
    Unavailable: "try again or use another instance, and look at the service's status page",
    Throttled: "slow down, or ask AWS for a higher request quota",
    AccessDenied: "check the credentials, the IAM policy and the key policy",
    KeyNotFound: "check key, account and region",
    KeyDisabled: "enable the key, cancel its deletion, or take it out of the configuration",
    InvalidCiphertext: "it is altered, or belongs to another key or another context",
    InvalidRequest: "the request does not fit this kind of key or the limits of AWS KMS",
    ConfigError: "check region and endpoint_url",
    ServiceError: "look the code up in the AWS documentation",
}
_ROLE_REFUSED: Final = (
    "check that these credentials may assume the role, the role's trust policy and external_id"
)
_UNTRUSTED: Final = "the endpoint's TLS certificate is not trusted: check its address and ca_file"
_HIDDEN_KEY: Final = ", and that the key exists in this region: AWS does not tell these apart"

_CODE: Final = re.compile(r"[A-Za-z0-9_.]{1,80}")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9-]{1,80}")
_WHOLE_NUMBER: Final = re.compile(r"[0-9]{1,9}")


class RoleNotAssumed(Exception):
    """The role whose credentials sign the requests could not be assumed; ``cause`` says why.

    Raised and translated within this package.
    """

    def __init__(self, role: str, cause: Exception) -> None:
        super().__init__(role)
        self.role = role
        self.cause = cause


@frozen
class Fault:
    """``error`` is to be raised from ``cause``; ``stale`` if the client should be built anew.

    ``code`` is the service's own, empty if it did not answer.
    """

    error: KMSError
    cause: Exception | None = None
    stale: bool = False
    code: str = ""


def translate(exc: Exception, operation: str, key: str) -> Fault:
    """What ``exc``, raised by the SDK in ``operation`` on ``key``, means."""
    if isinstance(exc, RoleNotAssumed):
        return _of_role(exc.cause, f"role {exc.role}")
    if response := _answered(exc):
        return _of_service(exc, response, operation, key)
    return _of_sdk(exc, operation, _Asked("AWS KMS", key))


def ciphertext_refused(key: str, request: str = "") -> InvalidCiphertext:
    """The one error of every ciphertext that does not authenticate, whoever noticed it."""
    advice = _ADVICE[InvalidCiphertext]
    return InvalidCiphertext(f"the ciphertext does not open with {key}{request}: {advice}")


@frozen
class _Asked:
    """Who was asked, and about what."""

    service: str
    about: str


def _of_service(exc: Exception, response: Mapping[str, Any], operation: str, key: str) -> Fault:
    code, kind = _verdict(response)
    request = _request(response)
    if kind is InvalidCiphertext:
        return Fault(ciphertext_refused(key, request), code=code)
    advice = _ADVICE[kind]
    if kind is AccessDenied and operation == "decrypt":
        advice += _HIDDEN_KEY
    message = f"AWS answered {_shown(response)} for {key}{request}; {advice}"
    return Fault(
        _error(kind, message, response),
        cause=exc if code in _CHAINED else None,
        stale=code in _STALE,
        code=code,
    )


def _of_role(exc: Exception, role: str) -> Fault:
    """As for any request, but whatever STS has against this one, it refuses the role."""
    response = _answered(exc)
    if not response:
        return _of_sdk(exc, "assume_role", _Asked("AWS STS", role))
    code, kind = _verdict(response)
    if not issubclass(kind, Unavailable | Throttled):
        kind = AccessDenied
    advice = _ROLE_REFUSED if kind is AccessDenied else _ADVICE[kind]
    message = f"AWS STS answered {_shown(response)} for {role}{_request(response)}; {advice}"
    return Fault(_error(kind, message, response), stale=code in _STALE)


def _of_sdk(exc: Exception, operation: str, asked: _Asked) -> Fault:
    names = [cls.__name__ for cls in type(exc).__mro__]
    kind = next((BY_CLASS[name] for name in names if name in BY_CLASS), None)
    if _is_untrusted(exc):
        message = f"{asked.service} was not asked about {asked.about}: {_UNTRUSTED}"
        return Fault(AccessDenied(message), cause=exc)
    if kind is None:  # the SDK's parsers trip over a malformed answer in many ways
        failed = f"the SDK failed in {operation} for {asked.about} ({names[0]})"
        return Fault(Unavailable(f"{failed}; {_ADVICE[Unavailable]}"))
    message = f"no answer from {asked.service} about {asked.about} ({names[0]}); {_ADVICE[kind]}"
    return Fault(
        kind(message),
        cause=None if _CHAINED.isdisjoint(names) else exc,
        stale=not _STALE.isdisjoint(names),
    )


def _answered(exc: Exception) -> Mapping[str, Any]:
    """The service's answer, empty if there was none."""
    response = getattr(exc, "response", None)
    return response if isinstance(response, Mapping) and "Error" in response else {}


def _verdict(response: Mapping[str, Any]) -> tuple[str, type[KMSError]]:
    code = str(response["Error"].get("Code", ""))
    return code, BY_CODE.get(code) or _by_status(_status(response))


def _shown(response: Mapping[str, Any]) -> str:
    code = str(response["Error"].get("Code", ""))
    return code if _CODE.fullmatch(code) else f"HTTP status {_status(response)}"


def _status(response: Mapping[str, Any]) -> int:
    status: int = _metadata(response).get("HTTPStatusCode", 0)
    return status


def _metadata(response: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata: Mapping[str, Any] = response.get("ResponseMetadata", {})
    return metadata


def _by_status(status: int) -> type[KMSError]:
    """For unknown codes: as much as the status tells, which is never a verdict on the data."""
    if status == 429:
        return Throttled
    if status in {401, 403, 407}:
        return AccessDenied
    return ServiceError if 400 <= status < 500 and status != 408 else Unavailable


def _error(kind: type[KMSError], message: str, response: Mapping[str, Any]) -> KMSError:
    if kind is Throttled:
        headers = _metadata(response).get("HTTPHeaders", {})
        return Throttled(message, retry_after=_retry_after(headers))
    return kind(message)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for header, unit in (("x-amz-retry-after", 1e-3), ("retry-after", 1.0)):
        value = headers.get(header, "")
        if _WHOLE_NUMBER.fullmatch(value):
            return int(value) * unit
    return None


def _request(response: Mapping[str, Any]) -> str:
    request_id = str(_metadata(response).get("RequestId", ""))
    return f" (request id {request_id})" if _REQUEST_ID.fullmatch(request_id) else ""


def _is_untrusted(exc: Exception) -> bool:
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(exc))


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__
