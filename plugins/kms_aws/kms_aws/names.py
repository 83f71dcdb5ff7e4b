"""Names of AWS KMS keys: the canonical ARN, and the forms in which a configuration names a key.

Nothing here asks the service: an alias or a bare key id stays partly known until it answers.
"""

from __future__ import annotations

import re
from typing import Final, Self

from attrs import evolve, frozen

SCHEME: Final = "aws-kms://"

_PARTITION: Final = r"aws(?:-[a-z]+)*"
_REGION: Final = r"[a-z]{2,8}(?:-[a-z]+)+-[0-9]{1,2}"
_ACCOUNT: Final = r"[0-9]{12}"
_KEY_ID: Final = r"mrk-[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ALIAS: Final = r"alias/[A-Za-z0-9/_-]{1,250}"

_IS_REGION: Final = re.compile(_REGION)
_ARN: Final = re.compile(
    rf"arn:({_PARTITION}):kms:({_REGION}):({_ACCOUNT}):(?:key/({_KEY_ID})|{_ALIAS})"
)
_LOCAL_NAME: Final = re.compile(rf"({_KEY_ID})|{_ALIAS}")
# The limits of AssumeRole: a role has a path, a session has a name of 2 to 64 characters.
_ROLE: Final = re.compile(rf"arn:{_PARTITION}:iam::{_ACCOUNT}:role/[A-Za-z0-9_+=,.@/-]{{1,576}}")
_SESSION_NAME: Final = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")
_EXTERNAL_ID: Final = re.compile(r"[A-Za-z0-9_+=,.@:/-]{2,1224}")


def is_region(text: str) -> bool:
    """Whether ``text`` has the form of a region's name; it becomes part of a host name."""
    return _IS_REGION.fullmatch(text) is not None


def is_role(text: str) -> bool:
    """Whether ``text`` has the form of a role's ARN."""
    return _ROLE.fullmatch(text) is not None


def is_session_name(text: str) -> bool:
    """Whether a session of a role may be called ``text``."""
    return _SESSION_NAME.fullmatch(text) is not None


def is_external_id(text: str) -> bool:
    """Whether ``text`` has the form of what a trust policy asks for as ``sts:ExternalId``."""
    return _EXTERNAL_ID.fullmatch(text) is not None


@frozen
class KeyArn:
    """The immutable name of one key in one region."""

    partition: str
    region: str
    account: str
    key_id: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The ARN in ``text``, or ``None`` if it is not the ARN of a key."""
        match = _ARN.fullmatch(text)
        return cls(match[1], match[2], match[3], match[4]) if match and match[4] else None

    @classmethod
    def of_uri(cls, key_uri: str) -> Self | None:
        """The ARN in a key URI, or ``None`` if it holds no key ARN."""
        return cls.parse(key_uri.removeprefix(SCHEME)) if key_uri.startswith(SCHEME) else None

    @property
    def multi_region(self) -> bool:
        """Whether replicas in other regions hold the same key material."""
        return self.key_id.startswith("mrk-")

    @property
    def uri(self) -> str:
        """The key URI that envelopes carry."""
        return f"{SCHEME}{self}"

    def seen_from(self, region: str) -> Self:
        """The replica in ``region`` of a multi-Region key; any other key as it is."""
        return evolve(self, region=region) if self.multi_region else self

    def __str__(self) -> str:
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:key/{self.key_id}"


@frozen
class ConfiguredKey:
    """A key as the configuration names it; ``None`` marks what that name leaves open."""

    name: str
    region: str
    partition: str | None = None
    account: str | None = None
    key_id: str | None = None

    @classmethod
    def parse(cls, name: str, region: str | None) -> Self:
        """Raises ``ValueError`` that names the field which is wrong."""
        if region is not None and not is_region(region):
            raise ValueError(f"region: {region!r} is not the name of a region, such as us-east-1")
        if match := _ARN.fullmatch(name):
            if region not in {None, match[2]}:
                raise ValueError(f"region: {region!r} is not the region of key, {match[2]!r}")
            return cls(name, match[2], match[1], match[3], match[4])
        local = _LOCAL_NAME.fullmatch(name)
        if local is None:
            raise ValueError(f"key: {name!r} is no key id, alias/NAME, key ARN or alias ARN of KMS")
        if region is None:
            raise ValueError("region: is missing, and key is not an ARN that would tell it")
        return cls(name, region, key_id=local[1])

    @property
    def arn(self) -> KeyArn | None:
        """The key's ARN if the name tells all of it."""
        return KeyArn.parse(self.name)

    @property
    def uri(self) -> str:
        """The URI as far as the name tells it; an ARN says its region itself."""
        return f"{SCHEME}{self.name if self.account else f'{self.region}/{self.name}'}"

    def may_be(self, arn: KeyArn) -> bool:
        """Whether nothing known about this key speaks against ``arn``."""
        return (
            arn.region == self.region
            and self.partition in {None, arn.partition}
            and self.account in {None, arn.account}
            and self.key_id in {None, arn.key_id}
        )
