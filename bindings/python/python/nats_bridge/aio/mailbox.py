"""How results of the core reach one event loop."""

import asyncio
from asyncio import Future
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from .._native import Completions

__all__ = ["Mailbox"]

T = TypeVar("T")
P = ParamSpec("P")


class Mailbox:
    """The results of one connection, delivered in the event loop that it was made in."""

    __slots__ = ("_completions", "_loop", "_open", "_waiting")

    def __init__(self) -> None:
        self._completions = Completions()
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._waiting = 0
        self._watch()

    async def wait(
        self, start: Callable[Concatenate[Completions, "Future[T]", P], int], *args: P.args, **names: P.kwargs
    ) -> T:
        """Starts a call of the core and waits for its result. Cancelled, it stops the call."""
        return await self.wait_or(lambda _: None, start, *args, **names)

    async def wait_or_close(
        self, start: Callable[Concatenate[Completions, "Future[T]", P], int], *args: P.args, **names: P.kwargs
    ) -> T:
        """As `wait`, for what the mailbox is made for: if that fails, it leaves the event loop."""
        try:
            return await self.wait(start, *args, **names)
        except BaseException:
            self.close()
            raise

    async def wait_or(
        self,
        give_back: Callable[[T], None],
        start: Callable[Concatenate[Completions, "Future[T]", P], int],
        *args: P.args,
        **names: P.kwargs,
    ) -> T:
        """As `wait`; a result that had arrived when the wait was cancelled goes to ``give_back``."""
        future: Future[T] = self._loop.create_future()
        token = start(self._completions, future, *args, **names)
        if not self._open and self._waiting == 0:
            self._watch()
        self._waiting += 1
        try:
            return await future
        except asyncio.CancelledError:
            self._completions.cancel(token)
            if future.done() and not future.cancelled() and future.exception() is None:
                give_back(future.result())
            raise
        finally:
            self._waiting -= 1
            self._leave()

    def close(self) -> None:
        """Leaves the event loop once nothing waits any more."""
        self._open = False
        self._leave()

    def _watch(self) -> None:
        self._loop.add_reader(self._completions.fileno(), self._completions.drain)

    def _leave(self) -> None:
        if not self._open and self._waiting == 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._completions.fileno())
