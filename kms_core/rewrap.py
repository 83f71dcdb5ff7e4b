"""Rewrapping: change who can open an envelope without touching its body.

A rewrap needs one working unwrap.  It wraps the same DEK for whoever is added or was missing,
proves each new wrap by unwrapping it, and only then drops anybody.  Recipients it does not know
stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from kms_core.aead import DEK_BYTES, Keys, wipe
from kms_core.context import Context
from kms_core.envelope import rewrap_capsule, split, unlock, wrap_context
from kms_core.errors import (
    AccessDenied,
    AllInstancesFailed,
    InvalidCiphertext,
    InvalidRequest,
    KMSError,
    UnsupportedOperation,
)
from kms_core.header import Capsule, parse_capsule
from kms_core.routing import Router
from kms_core.types import Attempt, Ciphertext


@frozen
class Intent:
    """What a rewrap is to achieve; names are instances, ``remove`` also takes key URIs."""

    recipients: tuple[str, ...]
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    repair: bool = True


@frozen
class Rewrapped:
    """The new envelope, and the instances that are still missing or could not be verified."""

    envelope: bytes
    missing: tuple[str, ...]
    unverified: tuple[str, ...]


def rewrap(envelope: bytes, router: Router, intent: Intent) -> Rewrapped:
    """Carry out ``intent`` on an inline envelope.

    Raises ``AllInstancesFailed`` if a recipient to be added, or every missing one, cannot be
    reached, and ``InvalidRequest`` if the intent makes no sense; then nothing has changed.
    """
    capsule_bytes, body = split(envelope)
    capsule = parse_capsule(capsule_bytes)
    plan = _plan(capsule, router, intent)
    dek = bytearray()
    try:
        keys = unlock(capsule_bytes, router.unwrap, keep_dek=dek)
        added, failures, unverified = _add(router, capsule, keys, dek, plan)
    finally:
        wipe(dek)
    failed = {attempt.instance for attempt in failures}
    if failed & set(intent.add) or (failures and not added and not plan.removed):
        raise AllInstancesFailed("nothing was changed: no wrap could be added", failures)
    now_held = {str(wrap.instance) for wrap in added}
    still_missing = tuple(name for name in plan.lacking if name not in now_held)
    missing = (*plan.foreign_missing, *(router.relays[name].key_uri for name in still_missing))
    if not added and not plan.removed and set(missing) == set(capsule.missing):
        return Rewrapped(envelope, still_missing, ())
    new = rewrap_capsule(
        capsule_bytes, capsule, keys, added=added, removed=plan.removed, missing=missing
    )
    return Rewrapped(new + body, still_missing, unverified)


@frozen
class _Plan:
    targets: tuple[str, ...]
    #: Instances that should hold the data key and do not, before anything is added.
    lacking: tuple[str, ...]
    removed: frozenset[str]
    #: Recorded as missing by the writer, and no instance of this configuration.
    foreign_missing: tuple[str, ...]


def _plan(capsule: Capsule, router: Router, intent: Intent) -> _Plan:
    for name in intent.add:
        if name not in router.relays:
            raise InvalidRequest(
                f"no instance {name!r} to add; known are {', '.join(router.relays)}"
            )
    present = [recipient.key_uri for recipient in capsule.recipients]
    holders = router.holders([*present, *capsule.missing], list(router.relays))
    held = {name: uris & set(present) for name, uris in holders.items()}
    removed = frozenset().union(*(_to_remove(item, present, held) for item in intent.remove))
    lacking = [
        name
        for name in intent.recipients
        if not held.get(name)
        and name not in intent.remove
        and (intent.repair or _recorded(router, name, holders, capsule.missing))
    ]
    targets = dict.fromkeys((*intent.add, *(lacking if intent.repair else ())))
    ours = {relay.key_uri for relay in router.relays.values()}.union(*holders.values())
    return _Plan(
        tuple(targets),
        tuple(lacking),
        removed,
        tuple(uri for uri in capsule.missing if uri not in ours),
    )


def _recorded(
    router: Router, name: str, holders: dict[str, set[str]], missing: Sequence[str]
) -> bool:
    """Whether the writer recorded this instance as missing."""
    return not {router.relays[name].key_uri, *holders.get(name, ())}.isdisjoint(missing)


def _to_remove(item: str, present: Sequence[str], held: dict[str, set[str]]) -> set[str]:
    uris = {item} & set(present) or held.get(item, set())
    if not uris:
        raise InvalidRequest(
            f"{item!r} is neither a recipient of this envelope nor an instance of one"
        )
    return uris


def _add(
    router: Router, capsule: Capsule, keys: Keys, dek: bytearray, plan: _Plan
) -> tuple[list[Ciphertext], tuple[Attempt, ...], tuple[str, ...]]:
    """New wraps that were proved, failures, and the instances that may not unwrap for us."""
    if not plan.targets:
        return [], (), ()
    context = wrap_context(capsule.scope, capsule.key_id, capsule.suite)
    result = router.wrap_each(dek, context, plan.targets)
    added, failures, unverified = [], list(result.failures), []
    for wrap in result.wraps:
        error = _prove(router, wrap, context, keys)
        if isinstance(error, AccessDenied | UnsupportedOperation):
            unverified.append(str(wrap.instance))
        elif error is not None:
            failures.append(Attempt(str(wrap.instance), error, 0.0))
            continue
        added.append(wrap)
    return added, tuple(failures), tuple(unverified)


def _prove(router: Router, wrap: Ciphertext, context: Context, keys: Keys) -> KMSError | None:
    """Unwrap what was just wrapped: why that failed, or ``None``."""

    def accept(dek: bytes | bytearray) -> Keys:
        if len(dek) == DEK_BYTES:
            unwrapped = Keys(dek, keys.scope, keys.suite)
            if unwrapped.commits_to(keys.commitment):
                return unwrapped
        raise InvalidCiphertext("the new wrap does not hold the data key")

    try:
        router.unwrap([wrap], context, accept, only=wrap.instance)
    except AllInstancesFailed as exc:
        return exc.attempts[-1].error
    except KMSError as exc:
        return exc
    return None
