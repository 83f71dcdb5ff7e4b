"""Rewrapping: change who can open an envelope without touching its body.

A rewrap needs one working unwrap (as many as the threshold says).  It wraps for whoever is added or
was missing, proves each new wrap by unwrapping it, and only then drops anybody.  Recipients it does
not know stay.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import IO, Final

from attrs import evolve, frozen

from kms_core import shamir
from kms_core.aead import DEK_BYTES, Keys, share_check
from kms_core.calls import Deadline
from kms_core.context import Context
from kms_core.envelope import (
    Shares,
    Unlocked,
    Wrapped,
    read_capsule,
    rewrap_capsule,
    unlock,
)
from kms_core.errors import (
    AccessDenied,
    AllInstancesFailed,
    FormatError,
    InvalidCiphertext,
    InvalidRequest,
    KMSError,
    RewrapConflict,
    Unavailable,
    UnsupportedOperation,
)
from kms_core.files import NewFile
from kms_core.header import BODY_KINDS, Capsule, check_prefix, parse_capsule
from kms_core.routing import Part, Router
from kms_core.stream import read_full, write_all
from kms_core.types import Attempt, Ciphertext

CONFLICT_RETRIES: Final = 8  # whoever loses that often is racing a loop, not a colleague
_COPY_BYTES: Final = 1 << 20


@frozen
class Intent:
    """What a rewrap is to achieve; names are instances, ``remove`` also takes key URIs."""

    recipients: tuple[str, ...]
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    repair: bool = True
    #: Tried again on what somebody else wrote: who is gone already need not be removed.
    again: bool = False


@frozen
class Rewrapped:
    """The new capsule, and the instances that are still missing or could not be verified."""

    capsule: bytes
    missing: tuple[str, ...]
    unverified: tuple[str, ...]


def rewrap(
    capsule_bytes: bytes,
    router: Router,
    unwrap: Callable[..., Keys],
    intent: Intent,
    *,
    check: Callable[[Iterable[Ciphertext]], None],
) -> Rewrapped:
    """Carry out ``intent`` on a capsule; the same bytes if there is nothing to do.

    Raises ``AllInstancesFailed`` if a recipient to be added, or every missing one, cannot be
    reached, and ``InvalidRequest`` if the intent makes no sense; then nothing has changed.
    ``unwrap`` is an ``envelope.Unwrap`` that also takes a ``deadline``, which all steps share;
    ``check`` may refuse new wraps by raising.
    """
    capsule = parse_capsule(capsule_bytes)
    deadline = router.deadline()
    plan = _plan(capsule, router, intent, deadline)
    secrets = Unlocked()
    try:
        keys = unlock(capsule_bytes, partial(unwrap, deadline=deadline), keep=secrets)
        added = _add(router, capsule, keys, secrets, plan, deadline)
    finally:
        secrets.wipe()
    failed = {attempt.instance for attempt in added.failures}
    if failed & plan.essential or (added.failures and not added.wraps and not plan.removed):
        raise AllInstancesFailed("nothing was changed: no wrap could be added", added.failures)
    check(wrap.ciphertext for wrap in added.wraps)
    _check_domains(capsule, router, plan, added)
    now_held = {str(wrap.ciphertext.instance) for wrap in added.wraps}
    still_missing = tuple(name for name in plan.lacking if name not in now_held)
    missing = (*plan.foreign_missing, *(router.relays[name].key_uri for name in still_missing))
    if not added.wraps and not plan.removed and set(missing) == set(capsule.missing):
        return Rewrapped(capsule_bytes, still_missing, ())
    new = rewrap_capsule(
        capsule_bytes, keys, added=added.wraps, removed=plan.removed, missing=missing
    )
    return Rewrapped(new, still_missing, added.unverified)


@frozen
class _Plan:
    #: Instances to wrap for.
    targets: tuple[str, ...]
    #: Those without which nothing may change.
    essential: frozenset[str]
    #: Instances that should hold the data key and do not, before anything is added.
    lacking: tuple[str, ...]
    removed: frozenset[str]
    #: The recipients that each instance holds, before anything is removed.
    held: Mapping[str, set[str]]
    #: Recorded as missing by the writer, and no instance of this configuration.
    foreign_missing: tuple[str, ...]


def _plan(capsule: Capsule, router: Router, intent: Intent, deadline: Deadline) -> _Plan:
    for name in intent.add:
        if name not in router.relays:
            known = ", ".join(router.relays)
            raise InvalidRequest(f"no instance {name!r} to add; known are {known}")
    present = [recipient.key_uri for recipient in capsule.recipients]
    holders = router.holders([*present, *capsule.missing], list(router.relays), deadline)
    held = {name: uris & set(present) for name, uris in holders.items()}
    for name in set(intent.remove) & router.relays.keys() - held.keys():
        raise Unavailable(
            f"{name} cannot tell now which recipients are its own; remove them by key URI"
        )
    removed = frozenset().union(
        *(_to_remove(item, present, held, again=intent.again) for item in intent.remove)
    )
    lacking = [
        name
        for name in intent.recipients
        if not held.get(name)
        and name not in intent.remove
        and ((intent.repair and name in held) or _recorded(router, name, holders, capsule.missing))
    ]
    resplit = _staying(present, removed, held) if removed and capsule.threshold > 1 else []
    ours = {relay.key_uri for relay in router.relays.values()}.union(*holders.values())
    return _Plan(
        targets=tuple(dict.fromkeys((*intent.add, *resplit, *(lacking if intent.repair else ())))),
        essential=frozenset((*intent.add, *resplit)),
        lacking=tuple(lacking),
        removed=frozenset(present) if resplit else removed,
        held=held,
        foreign_missing=tuple(uri for uri in capsule.missing if uri not in ours),
    )


def _to_remove(
    item: str, present: Sequence[str], held: Mapping[str, set[str]], *, again: bool
) -> set[str]:
    uris = {item} & set(present) or held.get(item, set())
    if not uris and not again:
        raise InvalidRequest(
            f"{item!r} is neither a recipient of this envelope nor an instance of one"
        )
    return uris


def _recorded(
    router: Router, name: str, holders: Mapping[str, set[str]], missing: Sequence[str]
) -> bool:
    """Whether the writer recorded this instance as missing."""
    return not {router.relays[name].key_uri, *holders.get(name, ())}.isdisjoint(missing)


def _staying(
    present: Sequence[str], removed: Iterable[str], held: Mapping[str, set[str]]
) -> list[str]:
    """The instances that need a new share once somebody who knows an old one is removed."""
    names = []
    for uri in set(present) - set(removed):
        holder = next((name for name, uris in held.items() if uri in uris), None)
        if holder is None:
            raise InvalidRequest(
                f"removing a share means new shares for all, and {uri} is no instance of this "
                "configuration; configure it, or remove it as well"
            )
        names.append(holder)
    return sorted(names)


@frozen
class _Added:
    """New wraps that were proved, failures, and the instances that may not unwrap for us."""

    wraps: tuple[Wrapped, ...] = ()
    failures: tuple[Attempt, ...] = ()
    unverified: tuple[str, ...] = ()


def _add(  # noqa: PLR0917  one call, and each is needed
    router: Router,
    capsule: Capsule,
    keys: Keys,
    secrets: Unlocked,
    plan: _Plan,
    deadline: Deadline,
) -> _Added:
    if not plan.targets:
        return _Added()
    kept = [each for each in capsule.recipients if each.key_uri not in plan.removed]
    shares = _new_shares(capsule, secrets, [each.share_index for each in kept], len(plan.targets))
    try:
        return _wrap_and_prove(router, keys, shares, plan.targets, deadline)
    finally:
        shares.wipe()


def _check_domains(capsule: Capsule, router: Router, plan: _Plan, added: _Added) -> None:
    """No single domain may come to hold enough shares to open alone."""
    if capsule.threshold == 1:
        return
    stays = {name: uris - plan.removed for name, uris in plan.held.items()}
    new = [(str(wrap.ciphertext.instance), wrap.ciphertext.key_uri) for wrap in added.wraps]
    shares = {
        (router.relays[name].domain(uri), uri)
        for name, uri in (*new, *((name, uri) for name, uris in stays.items() for uri in uris))
    }
    held = Counter(domain for domain, _ in shares)
    for domain in {router.relays[name].domain(uri) for name, uri in new}:
        if held[domain] >= capsule.threshold:
            raise InvalidRequest(
                f"nothing was changed: domain {domain} would hold {held[domain]} shares and could "
                "open alone; remove the others that it holds in the same call"
            )


def _new_shares(capsule: Capsule, secrets: Unlocked, taken: Sequence[int], count: int) -> Shares:
    """What the targets get: the DEK, shares of a fresh polynomial, or more of the present one."""
    if capsule.threshold == 1:
        return Shares.of(secrets.dek, 1, [0])
    free = [index for index in range(1, shamir.MAX_INDEX + 1) if index not in taken][:count]
    if not taken:
        return Shares.of(secrets.dek, capsule.threshold, free)
    return Shares(
        capsule.threshold,
        {index: shamir.interpolate(secrets.shares, index) for index in free},
    )


def _wrap_and_prove(
    router: Router, keys: Keys, shares: Shares, targets: Sequence[str], deadline: Deadline
) -> _Added:
    indexes = list(shares.parts) * (len(targets) if shares.threshold == 1 else 1)
    index_of = dict(zip(targets, indexes, strict=False))
    parts: dict[str, Part] = {name: shares.bound(keys, index) for name, index in index_of.items()}
    result = router.wrap_each(parts, deadline)
    wraps, failures, unverified = [], list(result.failures), []
    for ciphertext in result.wraps:
        name = str(ciphertext.instance)
        error = _prove(router, ciphertext, *parts[name], deadline)
        if isinstance(error, AccessDenied | UnsupportedOperation):
            unverified.append(name)
        elif error is not None:
            failures.append(Attempt(name, error, 0.0))
            continue
        wraps.append(shares.wrapped(ciphertext, index_of[name]))
    return _Added(tuple(wraps), tuple(failures), tuple(unverified))


def _prove(
    router: Router,
    wrap: Ciphertext,
    expected: bytes | bytearray,
    context: Context,
    deadline: Deadline,
) -> KMSError | None:
    """Unwrap what was just wrapped: why that failed, or ``None``."""
    check = share_check(expected)

    def accept(_: Ciphertext, part: bytes | bytearray) -> bool:
        if len(part) != DEK_BYTES or share_check(part) != check:
            raise InvalidCiphertext("the new wrap does not hold the data key")
        return True

    try:
        router.unwrap([(wrap, context)], accept, only=wrap.instance, deadline=deadline)
    except AllInstancesFailed as exc:
        return exc.attempts[-1].error
    except KMSError as exc:
        return exc
    return None


# --- where capsules are kept ---------------------------------------------------------------------


def until_undisturbed(attempt: Callable[[Intent], None], intent: Intent) -> None:
    """Carry out an intent again on what somebody else wrote meanwhile, a few times."""
    for _ in range(CONFLICT_RETRIES - 1):
        try:
            return attempt(intent)
        except RewrapConflict:
            intent = evolve(intent, again=True)
    return attempt(intent)


def rewrap_file(
    path: str | os.PathLike[str], change: Callable[[bytes, Intent], bytes], intent: Intent
) -> bool:
    """Put another capsule in front of a file's body; whether anything changed.

    The file is replaced whole by a copy, under a lock that other rewraps of it respect, and only if
    its capsule still is the one that ``change`` was given.
    """
    changed = False

    def attempt(intent: Intent) -> None:
        nonlocal changed
        with open(path, "rb", buffering=0) as old:  # noqa: PTH123
            capsule, lead = read_capsule(old)
            if not capsule:
                raise FormatError(
                    "this file has no capsule of its own: give the compact message to rewrap()"
                )
            check_prefix(lead, BODY_KINDS)
            new = change(capsule, intent)
            changed = new != capsule
            if changed:
                _replace_capsule(path, old, capsule, new + lead)

    until_undisturbed(attempt, intent)
    return changed


def _replace_capsule(
    path: str | os.PathLike[str], old: IO[bytes], capsule: bytes, head: bytes
) -> None:
    _lock(old)

    def still_the_same() -> None:
        # the lock belongs to the file that was opened: is that still the one at this path?
        if not os.path.samestat(os.fstat(old.fileno()), os.stat(path)):  # noqa: PTH116
            raise RewrapConflict(f"{path} was replaced by somebody else meanwhile")
        if os.pread(old.fileno(), len(capsule), 0) != capsule:
            raise RewrapConflict(f"{path} was rewritten by somebody else meanwhile")

    with NewFile(path, before_rename=still_the_same) as new:
        write_all(new.stream, memoryview(head))
        buffer = memoryview(bytearray(_COPY_BYTES))
        while size := read_full(old, buffer):
            write_all(new.stream, buffer[:size])  # a full disk takes a part, and says so only then


def _lock(file: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows: there the comparison right before the rename has to do
        return
    fcntl.flock(file, fcntl.LOCK_EX)
