"""Which keys an instance has, what they are, and whether an answer is about the right one.

Every request names its key and every answer must name the same one.
"""

from __future__ import annotations

from typing import Final, Literal

from kms_aws.algorithms import SYMMETRIC_DEFAULT, Kind
from kms_aws.answer import Answer
from kms_aws.errors import MISFIT, Fault
from kms_aws.names import KeyArn
from kms_aws.service import Service, fail
from kms_aws.settings import AwsKmsSettings
from kms_core import InvalidRequest, KMSError, Unavailable

# What AWS always tells and emulators do not: the newer name of the spec, and the obvious usage.
_SPECS: Final = ("KeySpec", "CustomerMasterKeySpec")
_SOLE_USAGE: Final = {SYMMETRIC_DEFAULT: "ENCRYPT_DECRYPT"}


class Keys:
    """The configured key, its replicas, and the retired keys that it also opens for."""

    def __init__(self, settings: AwsKmsSettings, service: Service) -> None:
        self._service = service
        self._configured = settings.configured_key
        self._region = self._configured.region
        self._regions = frozenset({self._region, *settings.replica_regions})
        self._retired = settings.retired_keys
        # Filled at most once: a name that is repointed later does not change who we are.
        self._resolved: dict[Literal["arn"], KeyArn] = {}
        if arn := self._configured.arn:
            self._resolved["arn"] = arn
        self._kinds: dict[KeyArn, Kind] = {}  # a key never changes its kind

    @property
    def uri(self) -> str:
        """Of the configured key, as far as it is known."""
        return self._configured.uri

    def match(self, key_uri: str) -> KeyArn | None:
        """The key of ours, as this region sees it, that ``key_uri`` names.

        Asks the service once if the configured name is not a key ARN and may stand for that key.
        """
        if key_uri == self.uri:
            return self.arn()
        arn = self._here(KeyArn.of_uri(key_uri))
        if arn is None:
            return None
        if arn in self._retired or (self._configured.may_be(arn) and arn == self.arn()):
            return arn
        return None

    def account(self, key_uri: str) -> str | None:
        """The account of the key that ``key_uri`` names, as far as it is known."""
        arn = KeyArn.of_uri(key_uri)
        if arn is None and key_uri == self.uri:
            arn = self._resolved.get("arn")
        return arn.account if arn else self._configured.account

    def arn(self) -> KeyArn:
        """The configured key's ARN; asks the service the first time if only it can tell."""
        if arn := self._resolved.get("arn"):
            return arn
        arn, _ = self.describe(self._configured.name)
        return arn

    def sent(self, key_id: str) -> str:
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

    def recognised(self, key: str, echoed: KeyArn) -> KeyArn:
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

    def describe(self, key: str) -> tuple[KeyArn, Answer]:
        """The key's ARN and metadata, by one DescribeKey."""
        metadata = self._service.ask("describe_key", key).inside("KeyMetadata")
        arn = self.recognised(key, metadata.arn("Arn"))
        self.note_kind(arn, metadata)
        return arn, metadata

    def note_kind(self, arn: KeyArn, answer: Answer) -> Kind:
        """Remember what an answer tells about a key's kind."""
        spec = next((spec for name in _SPECS if (spec := answer.word(name)) is not None), None)
        usage = answer.word("KeyUsage") or _SOLE_USAGE.get(spec or "")
        if spec is None or usage is None:
            raise answer.malformed("KeyUsage" if spec else "KeySpec")
        told = Kind(spec, usage)
        if self._kinds.setdefault(arn, told) != told:
            raise answer.malformed("KeySpec")
        return told

    def known_kind(self, key: str) -> Kind | None:
        """The key's kind if some answer has told it."""
        arn = KeyArn.parse(key)
        return None if arn is None else self._kinds.get(arn)

    def kind_behind(self, fault: Fault, key: str) -> Kind:
        """The key's kind if not knowing it may be why the service refused; else raises the fault.

        Nobody has to know what a key is, or may ask, as long as it is of the usual kind.
        """
        if fault.code not in MISFIT or self.known_kind(key) is not None:
            fail(fault)
        kind = self._asked_kind(key)
        if kind is None:
            fail(fault)
        return kind

    def _asked_kind(self, key: str) -> Kind | None:
        try:
            arn, _ = self.describe(key)
        except KMSError:
            return None  # what was refused in the first place says more
        return self._kinds[arn]

    def _may_use(self, arn: KeyArn) -> bool:
        resolved = self._resolved.get("arn")
        ours = arn == resolved if resolved else self._configured.may_be(arn)
        return ours or arn in self._retired

    def _here(self, arn: KeyArn | None) -> KeyArn | None:
        """The same key in this region, ``None`` if it is out of reach."""
        if arn is None or arn.region not in self._regions:
            return None
        arn = arn.seen_from(self._region)
        return arn if arn.region == self._region else None
