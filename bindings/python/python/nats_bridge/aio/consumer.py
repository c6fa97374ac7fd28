"""Consuming, for asyncio."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Self

from .._native import Bridge as NativeBridge
from .._native import Consumer as NativeConsumer
from .._native import Delivery as NativeDelivery
from .._native import Job, Settled, Waiting
from ..consumer import DRAIN_BUDGET_MS, ConsumerState
from ..arguments import runs_when_called
from ..errors import Error, described
from ..handling import Key, answer, tell_key
from ..options import ConsumeOptions
from ..received import Reason, Received, Why, failure
from .mailbox import Mailbox

__all__ = ["Consumer", "Consuming", "Delivery"]

# After so many deliveries that were there already, other tasks get a turn.
TURN = 32


class Delivery(Received):
    """A message to be settled exactly once: `ack`, `retry` or `dead_letter`; see `nats_bridge.Delivery`."""

    __slots__ = ("_mailbox",)

    def __init__(self, native: NativeDelivery, mailbox: Mailbox) -> None:
        super().__init__(native)
        self._mailbox = mailbox

    @property
    def settled(self) -> bool:
        """Whether it was settled."""
        return self._native.settled

    async def ack(self, *, confirmed: bool = False) -> Settled:
        """Says that the message is done; see `nats_bridge.Delivery.ack`."""
        begun = self._native.ack_start(self._mailbox.completions, confirmed)
        return await self._mailbox.arrival(begun) if isinstance(begun, Waiting) else begun

    async def retry(self, why: Why = "", *, delay_ms: int | None = None) -> Settled:
        """Says that handling failed; see `nats_bridge.Delivery.retry`."""
        return await self._mailbox.wait(self._native.retry_start, *failure(why), delay_ms)

    async def dead_letter(self, why: Why = "", *, reason: Reason = "rejected") -> Settled:
        """Gives the message up at once; see `nats_bridge.Delivery.dead_letter`."""
        return await self._mailbox.wait(self._native.dead_letter_start, reason, *failure(why))


class Consumer:
    """The deliveries of one durable consumer: an async iterator that ends when the consumer was drained.

    Leaving its ``async with`` block drains it. When an exception leaves the block, what was fetched and not handed out is given back, for
    5 s at most, and deliveries that are not settled are not waited for. ``break`` in a loop outside of such a block ends the loop and not
    the consumer: it goes on until it is drained or the connection is closed.
    """

    __slots__ = ("_mailbox", "_native", "_of", "_turn")

    def __init__(self, native: NativeConsumer, mailbox: Mailbox, stream: str, name: str) -> None:
        self._native = native
        self._mailbox = mailbox
        self._of = f"{stream}/{name}"
        self._turn = 0

    def __repr__(self) -> str:
        return described(self, self._of, lambda: f"{self.state} held={self.held}")

    async def next(self, timeout_ms: int | None = None) -> Delivery | None:
        """Waits for the next delivery; ``None`` when none came within ``timeout_ms``, or when the consumer was drained.

        Cancelled, it loses no delivery. Errors are those of `nats_bridge.Consumer.next`.
        """
        self._turn += 1
        if self._turn % TURN == 0:
            await asyncio.sleep(0)
        native = self._native.next_start(self._mailbox.completions, timeout_ms)
        if isinstance(native, Waiting):
            native = await self._mailbox.arrival(native, self._give_back)
        return None if native is None else Delivery(native, self._mailbox)

    def _give_back(self, native: NativeDelivery | None) -> None:
        if native is not None:
            self._native.give_back(native)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        delivery = await self.next()
        if delivery is None:
            raise StopAsyncIteration
        return delivery

    async def run(
        self, handler: Callable[[Received], Awaitable[object] | None], *, concurrency: int = 1, key: Key | None = None
    ) -> None:
        """Runs ``handler`` over the deliveries until the consumer was drained; see `nats_bridge.Consumer.run`.

        Handlers are tasks of this event loop. Cancelled, it cancels those that run, whose messages then count as failed; let
        `drain` end it instead.
        """
        runs_when_called("handler", handler, awaited=True)
        if key is not None:
            runs_when_called("key", key)
        jobs = self._native.jobs(concurrency, key is not None)
        running: set[asyncio.Task[None]] = set()
        try:
            while (job := await self._mailbox.wait(jobs.next_start)) is not None:
                if job.wants_key and key is not None:
                    tell_key(job, key)
                else:
                    task = asyncio.create_task(_handle(job, handler, self._native))
                    running.add(task)
                    task.add_done_callback(running.discard)
        finally:
            self._native.begin_to_drain()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def begin_to_drain(self) -> None:
        """Stops pulling and gives back what was not handed out, as `drain`, without waiting. Handlers and signal handlers may call it."""
        self._native.begin_to_drain()

    async def drain(self, budget_ms: int = DRAIN_BUDGET_MS) -> None:
        """Stops pulling, gives back what was not handed out, and waits until the rest is settled.

        Raises:
            Timeout: after ``budget_ms`` something is still not settled; it can still be.
        """
        await self._mailbox.wait(self._native.drain_start, budget_ms)

    @property
    def state(self) -> ConsumerState:
        """How it is."""
        return self._native.state[0]

    @property
    def trouble(self) -> str | None:
        """Why it is ``paused`` or ``failed``."""
        return self._native.state[1]

    @property
    def held(self) -> int:
        """How many deliveries are here and not settled, waiting ones included."""
        return self._native.held

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if raised is None:
            await self.drain()
            return
        try:
            await self._mailbox.wait(self._native.leave_start, DRAIN_BUDGET_MS)
        except Error:
            # The server does not answer or is away: it delivers again by itself, after ``ack_wait_ms``.
            pass


class Consuming:
    """A consumer that is about to start: ``async with bridge.consume(...)``, ``async for``, or ``await`` it."""

    __slots__ = ("_arguments", "_bridge", "_consumer", "_mailbox")

    def __init__(
        self, bridge: NativeBridge, mailbox: Mailbox, stream: str, name: str, options: ConsumeOptions
    ) -> None:
        self._bridge = bridge
        self._mailbox = mailbox
        self._arguments = (stream, name, options)
        self._consumer: Consumer | None = None

    async def _start(self) -> Consumer:
        if self._consumer is None:
            native = await self._mailbox.wait(self._bridge.consume_start, *self._arguments)
            self._consumer = Consumer(native, self._mailbox, *self._arguments[:2])
        return self._consumer

    async def run(
        self, handler: Callable[[Received], Awaitable[object] | None], *, concurrency: int = 1, key: Key | None = None
    ) -> None:
        """Starts, and runs ``handler`` over the deliveries; see `Consumer.run`."""
        async with self as consumer:
            await consumer.run(handler, concurrency=concurrency, key=key)

    def __await__(self) -> Generator[object, None, Consumer]:
        return self._start().__await__()

    async def __aenter__(self) -> Consumer:
        return await self._start()

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._consumer is not None:
            await self._consumer.__aexit__(kind, raised, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        return await (await self._start()).__anext__()


async def _handle(
    job: Job, handler: Callable[[Received], Awaitable[object] | None], native: NativeConsumer
) -> None:
    try:
        work = handler(Received(job.message))
        if work is not None:
            await work
    except (SystemExit, KeyboardInterrupt):
        # It ends the event loop, and with it the run: no failure of the message.
        native.begin_to_drain()
        job.give_back()
        raise
    except Exception as error:
        answer(job, error)
    except BaseException as error:
        answer(job, error)
        raise
    else:
        job.done()
