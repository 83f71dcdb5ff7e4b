"""``AsyncKms``: the loop is never held up, and a cancelled task gives its call up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kms_core import AsyncKms, IntegrityError, InvalidRequest
from tests.support import Hang, client_for, hanging, service


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in a loop of its own."""
    asyncio.run(asyncio.wait_for(work(), 60))


def client(**options: Any) -> AsyncKms:
    """Over two in-memory services."""
    return AsyncKms(client_for({name: service(name) for name in "ab"}), **options)


def test_many_tasks_share_few_threads() -> None:
    """Two thousand calls at once take no more threads than permitted."""

    async def work() -> None:
        most = 0
        async with client(max_threads=4) as kms:

            async def one(number: int) -> None:
                nonlocal most
                data, context = str(number).encode(), {"number": str(number)}
                assert await kms.open(await kms.seal(data, context), context) == data
                named = [thread.name for thread in threading.enumerate()]
                most = max(most, sum(name.startswith("kms-async-") for name in named))

            await asyncio.gather(*(one(number) for number in range(2000)))
        assert most == 4

    run(work)


def test_loop_goes_on_while_a_service_hangs() -> None:
    """Other tasks run, and the loop's own executor is as free as before."""

    async def work(hang: Hang) -> None:
        slow = service("slow")
        slow.always("encrypt", hang.fault)
        async with AsyncKms(client_for({"slow": slow})) as kms:
            sealing = asyncio.create_task(kms.seal(b"data"))
            await asyncio.to_thread(hang.wait_until_entered)
            assert kms.is_sealed(b"data") is False
            assert not sealing.done()
            hang.release.set()
            assert await kms.open(await sealing) == b"data"

    with hanging() as hang:
        run(lambda: work(hang))


def test_cancelled_task_ends_at_once() -> None:
    """While its call still hangs; the client goes on working."""

    async def work(hang: Hang) -> None:
        slow = service("slow")
        slow.queue("encrypt", hang.fault)
        async with AsyncKms(client_for({"slow": slow})) as kms:
            sealing = asyncio.create_task(kms.seal(b"data"))
            await asyncio.to_thread(hang.wait_until_entered)
            sealing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sealing
            assert await kms.open(await kms.seal(b"other")) == b"other"
            hang.release.set()

    with hanging() as hang:
        run(lambda: work(hang))


def test_call_that_is_cancelled_before_it_began_never_does() -> None:
    """A queue of abandoned calls costs the service nothing."""

    async def work(hang: Hang) -> None:
        slow = service("slow")
        slow.queue("encrypt", hang.fault)
        async with AsyncKms(client_for({"slow": slow}), max_threads=1) as kms:
            first = asyncio.create_task(kms.seal(b"data"))
            await asyncio.to_thread(hang.wait_until_entered)
            others = [asyncio.create_task(kms.seal(b"data")) for _ in range(10)]
            await asyncio.sleep(0)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            hang.release.set()
            await first
        assert slow.count("encrypt") == 1

    with hanging() as hang:
        run(lambda: work(hang))


def test_errors_are_those_of_the_client() -> None:
    """They arrive in the task that awaits."""

    async def work() -> None:
        async with client() as kms:
            sealed = await kms.seal(b"data", {"tenant": "42"})
            with pytest.raises(IntegrityError):
                await kms.open(sealed, {"tenant": "43"})

    run(work)


def test_client_works_in_one_loop_after_another() -> None:
    """It holds nothing of the loop it was first used in; closing it twice is closing it once."""
    kms = client()

    async def work() -> None:
        assert await kms.open(await kms.seal(b"data")) == b"data"

    async def close() -> None:
        await kms.close()
        await kms.close()
        with pytest.raises(InvalidRequest):
            await kms.seal(b"data")

    run(work)
    run(work)
    run(close)
