"""What a writer of envelopes demands before anything is written: new data keys, wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kms_core import envelope
from kms_core.aead import Keys, random_key, wipe
from kms_core.context import Context
from kms_core.errors import PolicyDenied
from kms_core.health import Gaps
from kms_core.memory import Arena
from kms_core.routing import Quorum, Router
from kms_core.sealing import NewKey
from kms_core.settings import Settings
from kms_core.types import POST_QUANTUM_WRAPS, Ciphertext


class Wrapper:
    """Makes data keys and puts them into the hands of the configured recipients."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        quorum: Quorum,
        arena: Arena,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._router = router
        self._quorum = quorum
        self._arena = arena
        self._gaps = Gaps(clock)

    def __call__(self, scope: Context) -> NewKey:
        """A fresh data key and its capsule.

        Raises ``AllInstancesFailed`` if too few recipients can be reached, ``PolicyDenied`` if what
        they did is not good enough.
        """
        recipients, threshold = self._settings.encrypting(), self._settings.threshold
        indexes = range(1, len(recipients) + 1) if threshold > 1 else [0] * len(recipients)
        index_of = dict(zip(recipients, indexes, strict=True))
        keys, shares = self._drawn(scope, threshold, list(indexes))
        try:
            parts = {name: shares.bound(keys, index) for name, index in index_of.items()}
            result = self._router.wrap(parts, self._quorum)
            self.check_post_quantum(result.wraps)
            wraps = [shares.wrapped(wrap, index_of[str(wrap.instance)]) for wrap in result.wraps]
        finally:
            shares.wipe()
        missing = tuple(attempt.instance for attempt in result.failures)
        self._gaps.note(missing, recipients)
        self._check_gaps()
        uris = [self._router.relays[name].key_uri for name in missing]
        return NewKey(keys, envelope.new_capsule(keys, wraps, uris, threshold=threshold), missing)

    def _drawn(
        self, scope: Context, threshold: int, indexes: list[int]
    ) -> tuple[Keys, envelope.Shares]:
        drawn = random_key()
        secret = self._arena.secret(drawn)
        wipe(drawn)
        try:
            with secret as dek:
                return Keys(dek, scope), envelope.Shares.of(dek, threshold, indexes)
        finally:
            secret.close()

    def check_post_quantum(self, wraps: Iterable[Ciphertext]) -> None:
        """Raise ``PolicyDenied`` for a wrap that ``envelope.require_pq`` does not allow."""
        weak = [str(wrap.instance) for wrap in wraps if wrap.wrap_alg not in POST_QUANTUM_WRAPS]
        if weak and self._settings.envelope.require_pq:
            raise PolicyDenied(
                f"envelope.require_pq: {', '.join(weak)} wrapped with an algorithm that a quantum "
                "computer undoes, and the weakest recipient decides; nothing was written"
            )

    def overdue(self) -> list[str]:
        """Who has been missing from all that was sealed for longer than may be."""
        return self._gaps.longer_than(self._settings.envelope.max_degraded_for)

    def _check_gaps(self) -> None:
        overdue = self.overdue()
        if overdue and self._settings.envelope.on_degraded == "refuse":
            raise PolicyDenied(
                f"nothing was written: {', '.join(overdue)} missing from all that was sealed for "
                "longer than envelope.max_degraded_for"
            )
