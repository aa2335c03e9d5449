"""Worker threads: what becomes of work that comes too late."""

from __future__ import annotations

import pytest
import trio

from cafs.errors import DaemonError
from cafs.workers import Workers


def test_work_is_done_in_a_thread() -> None:
    async def main() -> None:
        workers = Workers(2, "test")
        try:
            assert await workers.run(lambda: 6 * 7) == 42
            with pytest.raises(ZeroDivisionError):
                await workers.run(lambda: 1 // 0)
        finally:
            workers.close()

    trio.run(main)


def test_who_goes_on_after_the_close_is_told() -> None:
    """Somebody who was given a result before the close may run only after it."""

    async def main() -> None:
        workers = Workers(1, "test")
        workers.close()
        told: list[Exception | None] = []
        workers.submit(lambda: None, lambda _result, error: told.append(error))
        assert [type(error) for error in told] == [DaemonError]
        with pytest.raises(DaemonError):
            await workers.run(lambda: None)

    trio.run(main)
