"""What the service tells about a key: its state, its versions, and how it is rotated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, Literal

from kms_aws.algorithms import SYMMETRIC_DEFAULT
from kms_aws.answer import Answer
from kms_aws.keys import Keys
from kms_aws.names import KeyArn
from kms_aws.service import Service
from kms_core import AccessDenied, Health, InvalidRequest, KeyDisabled, KeyInfo, KMSError

MAX_PAGES: Final = 20  # of a key's materials, 100 each: one key has far fewer

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
_IN_USE: Final = frozenset({"CURRENT", "NON_CURRENT", None})  # the others are yet to be used
#: What a question beyond DescribeKey may be answered with; the description does without then.
_UNTOLD: Final = (AccessDenied, KeyDisabled, InvalidRequest)


class Description:
    """What ``health``, ``describe_key`` and ``rotate_key`` do with a key of this instance."""

    def __init__(self, keys: Keys, service: Service) -> None:
        self._keys = keys
        self._service = service

    def health(self, key: str) -> Health:
        """Whether the key may be used, by one DescribeKey."""
        arn, metadata = self._keys.describe(key)
        kind, state = self._keys.note_kind(arn, metadata), _state(metadata)
        if not kind.usable:
            return Health(ok=False, reason=f"key {arn} is {kind}, for which there is no use here")
        shown = arn if kind.spec == SYMMETRIC_DEFAULT else f"{arn} ({kind})"
        return Health(ok=state in _USABLE, reason=f"key {shown} is {state}")

    def describe(self, key: str) -> KeyInfo:
        """Versions and rotation only of symmetric keys, and where asking for them is permitted."""
        arn, metadata = self._keys.describe(key)
        primary = metadata.word("CurrentKeyMaterialId")
        rotates = self._keys.note_kind(arn, metadata).spec == SYMMETRIC_DEFAULT
        external = metadata.word("Origin") == "EXTERNAL_KEY_STORE"
        return KeyInfo(
            key_uri=arn.uri,
            state=_STATES.get(_state(metadata), "unknown"),
            # Where an external key store keeps its keys is not for AWS to vouch for.
            protection="software" if external else "hsm",
            primary_version=primary,
            versions=self._versions(arn, primary) if rotates else (),
            region=arn.region,
            rotation=self._rotation(arn) if rotates else None,
        )

    def rotate(self, key: str) -> KeyInfo:
        """Ask for new key material, which the service makes in its own time.

        Once it has agreed this does not fail, or it would be asked a second time.
        """
        arn = KeyArn.parse(key) or self._keys.arn()  # this operation takes no alias
        self._service.ask("rotate_key_on_demand", str(arn))
        try:
            return self.describe(str(arn))
        except KMSError:  # what is certain of a key that could be rotated
            return KeyInfo(arn.uri, state="enabled", protection="hsm", region=arn.region)

    def _versions(self, arn: KeyArn, primary: str | None) -> tuple[str, ...]:
        """Oldest first; the primary one is the newest, even if the list does not have it yet."""
        try:
            entries = sorted(self._rotations(str(arn)), key=_made)
        except _UNTOLD:
            return ()
        listed = (entry.word("KeyMaterialId") for entry in entries)
        older = [version for version in listed if version not in {None, primary}]
        return tuple(filter(None, [*older, primary]))

    def _rotations(self, key: str) -> Iterator[Answer]:
        """The key's materials that are in use or were."""
        marker: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            page = self._service.ask(
                "list_key_rotations", key, IncludeKeyMaterial="ALL_KEY_MATERIAL", **marker
            )
            for entry in page.entries("Rotations"):
                if entry.word("KeyMaterialState") in _IN_USE:
                    yield entry
            if not page.fields.get("Truncated"):
                return
            marker = {"Marker": page.text("NextMarker")}

    def _rotation(self, arn: KeyArn) -> bool | None:
        try:
            answer = self._service.ask("get_key_rotation_status", str(arn))
        except _UNTOLD:
            return None
        return answer.flag("KeyRotationEnabled")


def _made(entry: Answer) -> datetime:
    """When it was; the first material of a key has no date."""
    return entry.moment("RotationDate") or datetime.min.replace(tzinfo=UTC)


def _state(metadata: Answer) -> str:
    state = metadata.word("KeyState")
    if state is None:
        raise metadata.malformed("KeyState")
    return state
