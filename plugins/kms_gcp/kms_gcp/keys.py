"""Which keys an instance has, which of their versions are in use, and what those do.

Every request names its key and every answer must name the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from attrs import frozen

from kms_core import InvalidRequest, KeyDisabled, KMSError, Unavailable
from kms_gcp.algorithms import Algorithm, named
from kms_gcp.answer import Answer
from kms_gcp.errors import Fault, fail
from kms_gcp.names import KeyName
from kms_gcp.service import Service
from kms_gcp.settings import GcpKmsSettings

#: How long, in seconds, a version is taken for the newest one, and a public key for usable.
MAX_AGE: Final = 3600.0
MAX_PAGES: Final = 20  # of a key's versions
PAGE_SIZE: Final = 500

#: What asking a key for something that keys of its kind do not do may be answered with.
MISFIT: Final = frozenset({"FAILED_PRECONDITION", "INVALID_ARGUMENT", "PERMISSION_DENIED"})


@frozen
class Version:
    """A version of a key, as the service tells it."""

    name: KeyName
    algorithm: Algorithm
    state: str
    protection: str

    @property
    def number(self) -> int:
        """Versions are numbered in the order in which they were made."""
        return int(self.name.version or 0)


@frozen
class _Newest:
    version: Version
    told_at: float


class Keys:
    """The configured key and the retired ones that it also opens for."""

    def __init__(
        self,
        settings: GcpKmsSettings,
        service: Service,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._text = settings.key
        self._configured = settings.configured_key
        self._ours = (self._configured, *settings.retired_keys)
        self._clock = clock
        self._algorithms: dict[KeyName, Algorithm] = {}  # of versions, which never change theirs
        self._purposes: dict[KeyName, Algorithm] = {}  # of keys: what some version of each does
        self._newest: dict[KeyName, _Newest] = {}

    @property
    def uri(self) -> str:
        """Of the configured key, with the version if one is configured."""
        return self._configured.uri

    def match(self, key_uri: str) -> KeyName | None:
        """The key or version of ours that ``key_uri`` names."""
        name = KeyName.of_uri(key_uri)
        return name if name is not None and self._is_ours(name) else None

    def sent(self, key_id: str) -> KeyName:
        """What to ask the service for.  Keys and versions that are not ours are refused."""
        if key_id == self._text:
            return self._configured
        name = KeyName.parse(key_id)
        if name is None or not self._is_ours(name):
            raise InvalidRequest(
                f"{key_id!r} is no key of this instance, which has {self._configured}; "
                "use what match() returns"
            )
        return name

    def known(self, name: KeyName) -> Algorithm | None:
        """What a key or version does, or another version of the key, if some answer has told it.

        All versions of a key wrap in the same way, if at all; not all are of the same size.
        """
        return self._algorithms.get(name) or self._purposes.get(name.parent)

    def note_symmetric(self, name: KeyName) -> None:
        """Remember that a key encrypts and decrypts what it is sent."""
        self._purposes.setdefault(name.parent, named("GOOGLE_SYMMETRIC_ENCRYPTION"))

    def in_use(self, name: KeyName) -> tuple[KeyName, Algorithm]:
        """The version that ``name`` stands for, and what it does; asks if that is not known."""
        if name.version is None:
            version = self._remembered(name) or self.newest(name)
            return version.name, version.algorithm
        algorithm = self._algorithms.get(name)
        return name, algorithm or self.version(name).algorithm

    def version(self, name: KeyName) -> Version:
        """What the service tells about a version."""
        answer = self._service.ask("GetCryptoKeyVersion", name)
        answer.version()
        return self.read(answer)

    def newest(self, key: KeyName) -> Version:
        """The newest version that may be used, as the service tells it now."""
        enabled = list(self.versions(key, enabled=True))
        if not enabled:
            raise KeyDisabled(f"key {key} has no enabled version; enable one, or make a new one")
        newest = max(enabled, key=lambda version: version.number)
        self._newest[key] = _Newest(newest, self._clock())
        return newest

    def forget_newest(self, key: KeyName) -> None:
        """The newest version is another one, or was refused: ask again."""
        self._newest.pop(key.parent, None)

    def versions(self, key: KeyName, *, enabled: bool = False) -> Iterator[Version]:
        """All versions of a key, or those that may be used."""
        page: dict[str, str] = {"filter": "state=ENABLED"} if enabled else {}
        for _ in range(MAX_PAGES):
            answer = self._service.ask(
                "ListCryptoKeyVersions", key, parent=str(key), page_size=PAGE_SIZE, **page
            )
            yield from (self.read(entry) for entry in answer.entries("crypto_key_versions"))
            token: str = answer.message.next_page_token
            if not token:
                return
            page["page_token"] = token

    def read(self, answer: Answer) -> Version:
        """The version that an answer describes; remembers what it does."""
        name = answer.version()
        algorithm = named(answer.word("algorithm"))
        if self._algorithms.setdefault(name, algorithm) != algorithm:
            raise answer.malformed("algorithm")
        self._purposes.setdefault(name.parent, algorithm)
        return Version(name, algorithm, answer.word("state"), answer.word("protection_level"))

    def behind(self, fault: Fault, name: KeyName) -> Algorithm:
        """What a key does if not knowing it may be why the service refused; else raises the fault.

        Nobody has to know what a key is, or may ask, as long as it is of the usual kind.
        """
        if fault.status not in MISFIT or isinstance(fault.error, KeyDisabled | Unavailable):
            fail(fault)
        algorithm = self.known(name) or self._asked(name)
        if algorithm is None:
            fail(fault)
        return algorithm

    def _asked(self, name: KeyName) -> Algorithm | None:
        try:
            _, algorithm = self.in_use(name)
        except KeyDisabled:
            raise
        except KMSError:
            return None  # what was refused in the first place says more
        return algorithm

    def _remembered(self, key: KeyName) -> Version | None:
        newest = self._newest.get(key)
        if newest is None or self._clock() - newest.told_at >= MAX_AGE:
            return None
        return newest.version

    def _is_ours(self, name: KeyName) -> bool:
        return any(key.covers(name) for key in self._ours)
