"""How results of the core reach one event loop."""

import asyncio
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar, cast

from .._native import Completions, Waiting

__all__ = ["Mailbox"]

T = TypeVar("T")
P = ParamSpec("P")


class Mailbox:
    """The results of one connection, delivered in the event loop that it was made in."""

    __slots__ = ("_loop", "_open", "_waiting", "completions")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.completions = Completions(self._loop)
        self._open = True
        self._waiting = 0
        self._watch()

    async def wait(
        self, start: Callable[Concatenate[Completions, P], "T | Waiting[T]"], *args: P.args, **names: P.kwargs
    ) -> T:
        """Starts a call of the core and waits for its result. Cancelled, it stops the call."""
        begun = start(self.completions, *args, **names)
        return await self.arrival(cast("Waiting[T]", begun)) if isinstance(begun, Waiting) else begun

    async def wait_or_close(
        self, start: Callable[Concatenate[Completions, P], "T | Waiting[T]"], *args: P.args, **names: P.kwargs
    ) -> T:
        """As `wait`, for what the mailbox is made for: if that fails, it leaves the event loop."""
        try:
            return await self.wait(start, *args, **names)
        except BaseException:
            self.close()
            raise

    async def arrival(self, begun: "Waiting[T]", give_back: Callable[[T], None] = lambda _: None) -> T:
        """Waits for the result of a call. Cancelled, it stops the call; a result that had arrived then goes to ``give_back``."""
        future = begun.future
        if not self._open and self._waiting == 0:
            self._watch()
        self._waiting += 1
        try:
            return await future
        except asyncio.CancelledError:
            self.completions.cancel(begun.token)
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
        self._loop.add_reader(self.completions.fileno(), self.completions.drain)

    def _leave(self) -> None:
        if not self._open and self._waiting == 0 and not self._loop.is_closed():
            self._loop.remove_reader(self.completions.fileno())
