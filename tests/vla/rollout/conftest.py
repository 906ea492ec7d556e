"""A server in a thread of its own, for clients that block."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vla.core.protocols import Policy
from vla.rollout.server import Limits, PolicyServer


@contextmanager
def _serving(policy: Policy, **options: Any) -> Iterator[PolicyServer]:
    ready, failed = threading.Event(), []
    patient = Limits(deadline_s=60)  # a loaded machine is not what is tested
    server = PolicyServer(policy, **{"port": 0, "limits": patient, **options})
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def run() -> None:
        async with server:
            ready.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(run())
        except Exception as error:  # noqa: BLE001  raised again in the test's own thread
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(20)
    try:
        if not failed:
            yield server
    finally:
        if not failed:
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
    if failed:
        raise failed[0]


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """`with serving(policy, **options of PolicyServer) as server:`; the port is any free one."""
    return _serving
