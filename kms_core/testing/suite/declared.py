"""What a test class declares about its provider, and how the suite keeps to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import Phase, settings

from kms_core.errors import InvalidCiphertext, KMSError
from kms_core.testing.servers.panel import Failure, Panel
from kms_core.types import MAX_SIGNED_BYTES

T = TypeVar("T")


def needs(*capabilities: str) -> Callable[[T], T]:
    """Skip a test, or all tests of a class, unless each of these attributes is declared true."""

    def mark(subject: T) -> T:
        members: Mapping[str, Any] = (
            vars(subject) if inspect.isclass(subject) else {"test_": subject}
        )
        for name, test in members.items():
            if name.startswith("test_"):
                test.needs = (*capabilities, *getattr(test, "needs", ()))
        return subject

    return mark


class Declared:
    """The attributes and fixtures that a subclass overrides."""

    # Which hooks there are, besides those that are required

    has_data_key: ClassVar[bool] = True
    describes: ClassVar[bool] = True
    rotates: ClassVar[bool] = False
    has_sign: ClassVar[bool] = False
    has_verify: ClassVar[bool] = False
    has_public_key: ClassVar[bool] = False

    # Wrapping

    #: Whether the key under test wraps.  False for one that only signs.
    encrypts: ClassVar[bool] = True
    #: Bounds of what ``encrypt`` takes, in bytes.
    min_plaintext: ClassVar[int] = 1
    max_plaintext: ClassVar[int] = 4096
    #: Whether another context is refused.  False only against a backend that ignores contexts.
    binds_context: ClassVar[bool] = True
    #: Whether ``{"a": "bc"}`` and ``{"ab": "c"}`` differ for the backend.
    splits_context: ClassVar[bool] = True
    #: What an altered, foreign or junk blob raises; some backends see another key's name in it.
    altered_raises: ClassVar[tuple[type[KMSError], ...]] = (InvalidCiphertext,)
    #: Whether anybody can wrap to the key under test with its public key (RSA-OAEP-SHA256).
    wraps_offline: ClassVar[bool] = False
    #: Whether ``rotate_key`` may be called here.  False for a key that is in use.
    may_rotate: ClassVar[bool] = True
    #: A well-formed key URI of this provider type that the instance does not hold.
    foreign_key_uri: ClassVar[str | None] = None

    # Signing

    #: The algorithms of the key that the fixture ``signing_key`` gives, signatures and MACs.
    signs: ClassVar[tuple[str, ...]] = ()
    #: Fewest and most bytes of a message, for algorithms whose bounds are not 0 and 1 MiB.
    signed_bytes: ClassVar[Mapping[str, tuple[int, int]]] = {}

    # Failing: what the fixture ``panel`` makes the service do

    #: The time-out of one call with which the provider under test was made, in seconds.
    attempt_timeout: ClassVar[float] = 3.0
    #: How long after its time-out a call may still come back, in seconds.
    patience: ClassVar[float] = 5.0
    #: What the panel calls the operation behind a hook; without it all requests are counted.
    operations: ClassVar[Mapping[str, str]] = {}
    #: Whether the service says how long to wait when it throttles.
    says_retry_after: ClassVar[bool] = False
    #: Whether the answer to ``decrypt`` names the key that was used.
    decrypt_names_key: ClassVar[bool] = False
    #: By hook: failures that do not reach it, such as any where the answer is cached.
    not_hit_by: ClassVar[Mapping[str, tuple[Failure, ...]]] = {}

    # Living

    #: Whether an instance goes on working in a forked child.
    survives_fork: ClassVar[bool] = True
    #: The module the entry point names, and the SDK's modules that importing it may not load.
    plugin_module: ClassVar[str | None] = None
    sdk_modules: ClassVar[tuple[str, ...]] = ()

    # How much to try, where each try is one call to the service

    #: Junk ciphertexts.
    fuzz_examples: ClassVar[int] = 50
    #: Altered bytes of a blob or signature.
    altered_bytes: ClassVar[int] = 600
    #: Round trips of each of eight threads.
    thread_round_trips: ClassVar[int] = 25

    @pytest.fixture
    def other_key(self) -> tuple[Any, str] | None:
        """Override: an instance holding another key of the same service, and that key's id."""
        return None

    @pytest.fixture
    def signing_key(self) -> tuple[Any, str] | None:
        """Override: an instance with a key that signs, and that key's id.

        The default ``None`` stands for the provider under test itself.  Where keys have one
        algorithm each, take the argument ``algorithm`` and return the key for it.
        """
        return None

    @pytest.fixture
    def rotate_signing_key(self) -> Callable[[], None] | None:
        """Override: a function that makes a new version of ``signing_key`` the current one."""
        return None

    @pytest.fixture
    def panel(self) -> Panel | None:
        """Override: the switches of the service that the provider talks to."""
        return None

    @pytest.fixture
    def algorithm(self) -> str | None:
        """Each of ``signs`` in turn where signing is tested, the first of them elsewhere."""
        return self.signs[0] if self.signs else None

    @pytest.fixture
    def signer(
        self, request: pytest.FixtureRequest, signing_key: tuple[Any, str] | None
    ) -> tuple[Any, str]:
        """Not for overriding: the instance that signs, and the id of its key."""
        if signing_key is not None:
            return signing_key
        return request.getfixturevalue("provider"), request.getfixturevalue("key_id")

    @pytest.fixture(autouse=True)
    def _as_declared(self, request: pytest.FixtureRequest) -> None:
        """Skip what ``needs`` something that is declared absent, before anything is set up."""
        for capability in getattr(request.function, "needs", ()):
            if not getattr(self, capability):
                pytest.skip(f"declared: {capability} = False")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every test of a signature once for each algorithm."""
        if "signer" in metafunc.fixturenames:
            none = pytest.param(None, id="none", marks=pytest.mark.skip("declared: signs = ()"))
            metafunc.parametrize("algorithm", self.signs or [none])

    def message_bounds(self, algorithm: str) -> tuple[int, int]:
        """Fewest and most bytes that are signed with ``algorithm``."""
        return self.signed_bytes.get(algorithm, (0, MAX_SIGNED_BYTES))

    def message(self, algorithm: str, size: str = "64") -> bytes:
        """A message of so many bytes, or ``min`` or ``max``; skips the test if that is no size."""
        fewest, most = self.message_bounds(algorithm)
        length = {"min": fewest, "max": most}[size] if size in {"min", "max"} else int(size)
        if not fewest <= length <= most:
            pytest.skip(f"declared: signed_bytes excludes {length} bytes for {algorithm}")
        return (b"Message " * (length // 8 + 1))[:length]

    @property
    def junk(self) -> settings:
        """Junk of any size is as good as small junk: shrinking it would cost more calls."""
        return settings(
            max_examples=self.fuzz_examples,
            phases=(Phase.generate,),
            deadline=None,
            database=None,
            derandomize=True,
        )

    def positions(self, size: int) -> list[int]:
        """All of a blob's bytes, or as many from either end as are worth a call each."""
        if size <= self.altered_bytes:
            return list(range(size))
        half = self.altered_bytes // 2
        return [*range(half), *range(size - half, size)]
