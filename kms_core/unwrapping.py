"""What a reader of envelopes permits before any key service is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from kms_core.aead import Keys
from kms_core.calls import Deadline
from kms_core.context import Context
from kms_core.envelope import Accept
from kms_core.errors import IntegrityError, NoMatchingRecipient, PolicyDenied
from kms_core.limits import Remembered
from kms_core.routing import Router
from kms_core.types import PUBLIC_KEY_WRAPS, Ciphertext

#: A capsule that was refused is refused again for so many seconds, without asking anybody.
REFUSED_SECONDS: Final = 10.0
MAX_REFUSED: Final = 10_000


class Unwrapper:
    """Unwraps the keys of envelopes through the recipients that the reader's policy allows.

    A capsule that turned out forged or foreign is remembered for a little while: whoever sends it
    again and again costs the services nothing more.
    """

    def __init__(
        self,
        router: Router,
        *,
        min_threshold: int,
        allow_public_key_wraps: bool,
        clock: Callable[[], float],
    ) -> None:
        self._router = router
        self._min_threshold = min_threshold
        self._allow_public_key_wraps = allow_public_key_wraps
        self._refused: Remembered[bytes] = Remembered(REFUSED_SECONDS, MAX_REFUSED, clock)

    def __call__(
        self,
        wraps: Sequence[tuple[Ciphertext, Context]],
        accept: Accept,
        *,
        threshold: int,
        capsule: bytes,
        deadline: Deadline | None = None,
    ) -> Keys:
        """The keys that ``accept`` makes of enough unwraps; raises as ``Router.unwrap``.

        ``PolicyDenied`` if the reader does not open such envelopes.
        """
        allowed = self._allowed(wraps, threshold)
        name = hashlib.sha256(capsule).digest()
        if self._refused.left(name):
            raise IntegrityError
        try:
            return self._router.unwrap(allowed, accept, threshold=threshold, deadline=deadline)
        except NoMatchingRecipient:
            raise  # costs nothing, and a rewrap may bring a recipient that matches
        except IntegrityError:
            self._refused.note(name)
            raise

    def _allowed(
        self, wraps: Sequence[tuple[Ciphertext, Context]], threshold: int
    ) -> list[tuple[Ciphertext, Context]]:
        if threshold < self._min_threshold:
            raise PolicyDenied(
                f"{threshold} recipient can open this envelope alone, and envelope.min_threshold "
                f"is {self._min_threshold}"
            )
        allowed = [
            wrap
            for wrap in wraps
            if self._allow_public_key_wraps or wrap[0].wrap_alg not in PUBLIC_KEY_WRAPS
        ]
        if len(allowed) < threshold:
            raise PolicyDenied("envelope.allow_public_key_wraps = false leaves too few recipients")
        return allowed
