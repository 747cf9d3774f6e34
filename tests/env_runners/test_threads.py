import asyncio
import threading
import time

import pytest

from rllib_exit.env_runners.threads import call_in_thread


def test_a_thread_is_used_again() -> None:
    async def idents() -> list[int]:
        return [await call_in_thread(threading.get_ident, 5.0) for _ in range(20)]

    # Those of another event loop too.
    assert len({*asyncio.run(idents()), *asyncio.run(idents())}) == 1


def test_calls_run_at_once() -> None:
    barrier = threading.Barrier(8)

    async def meet() -> None:
        await asyncio.gather(*(call_in_thread(barrier.wait, 5.0) for _ in range(8)))

    asyncio.run(meet())


def test_an_error_is_raised_and_the_thread_used_again() -> None:
    async def run() -> None:
        before = await call_in_thread(threading.get_ident, 5.0)
        with pytest.raises(ZeroDivisionError):
            await call_in_thread(lambda: 1 // 0, 5.0)
        assert await call_in_thread(threading.get_ident, 5.0) == before

    asyncio.run(run())


def test_a_time_out_of_the_environments_own_is_told_from_ours() -> None:
    def own() -> None:
        raise TimeoutError("a server did not answer")

    with pytest.raises(TimeoutError, match="a server did not answer"):
        asyncio.run(call_in_thread(own, 5.0))


def test_a_thread_that_hangs_is_left_behind_and_ends_when_it_can() -> None:
    release, threads = threading.Event(), []

    def hang() -> None:
        threads.append(threading.current_thread())
        release.wait()

    async def run() -> None:
        with pytest.raises(TimeoutError, match=r"env_timeout_s \(0\.05 s\)"):
            await call_in_thread(hang, 0.05)
        assert await call_in_thread(threading.current_thread, 5.0) is not threads[0]

    start = time.monotonic()
    asyncio.run(run())  # does not wait for the thread
    assert time.monotonic() - start < 30 and threads[0].daemon and threads[0].is_alive()
    release.set()
    threads[0].join(5.0)
    assert not threads[0].is_alive()


def test_a_call_that_is_cancelled_gives_its_thread_up() -> None:
    release = threading.Event()

    async def run() -> None:
        call = asyncio.create_task(call_in_thread(release.wait, None))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        release.set()
        assert await call_in_thread(lambda: 1, 5.0) == 1

    asyncio.run(run())
