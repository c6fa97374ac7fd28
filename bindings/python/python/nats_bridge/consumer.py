"""Consuming, for threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Literal, Self

from ._native import Consumer as NativeConsumer
from ._native import Job, Jobs, Settled
from .arguments import runs_when_called
from .errors import Error, described
from .handling import Key, answer, refuse_unfinished, tell_key
from .received import Reason, Received, Why, failure

__all__ = ["Consumer", "ConsumerState", "Delivery", "DRAIN_BUDGET_MS"]

DRAIN_BUDGET_MS = 5_000

ConsumerState = Literal["running", "waiting", "paused", "draining", "stopped", "failed", "unknown"]
"""``waiting``: another instance is the single active consumer. ``paused``: a message that was given up cannot be stored as a dead letter; nothing new comes until it can."""


class Delivery(Received):
    """A message to be settled exactly once: `ack`, `retry` or `dead_letter`. A second settle raises `AlreadySettled`.

    While it is held, the server is told so, up to the consumer's ``max_run_ms``. Let go without having been settled, it
    counts as failed and follows the retry policy.
    """

    __slots__ = ()

    @property
    def settled(self) -> bool:
        """Whether it was settled."""
        return self._native.settled

    def ack(self, *, confirmed: bool = False) -> Settled:
        """Says that the message is done.

        Returns when the ack is handed over: one that is lost with the connection means that the message comes again. With
        ``confirmed`` it waits until the server has it, and the message does not come again.

        Raises:
            AlreadySettled: it was settled before.
            Closed: the connection was closed; the message comes again.
            Timeout: with ``confirmed``, no answer within 5 s; the server may have it.
        """
        return self._native.ack(confirmed)

    def retry(self, why: Why = "", *, delay_ms: int | None = None) -> Settled:
        """Says that handling failed: it comes again after the pause that the policy computes, or after ``delay_ms``.

        When the policy has no attempt left it becomes a dead letter with reason ``handler_error``; what is returned says
        which it was.

        Raises:
            AlreadySettled: it was settled before.
            Closed: the connection was closed; the message comes again.
        """
        return self._native.retry(*failure(why), delay_ms)

    def dead_letter(self, why: Why = "", *, reason: Reason = "rejected") -> Settled:
        """Gives the message up at once: it is stored in the dead-letter stream, then the original is ended.

        Raises:
            AlreadySettled: it was settled before.
            Error: the dead-letter stream does not take it. The message is kept, the consumer pauses and goes on trying;
                there is nothing to do about this delivery.
        """
        return self._native.dead_letter(reason, *failure(why))


class Consumer:
    """The deliveries of one durable consumer: an iterator that ends when the consumer was drained. Threads may share it.

    Leaving its ``with`` block drains it. When an exception leaves the block, what was fetched and not handed out is given back, for
    5 s at most, and deliveries that are not settled are not waited for. ``break`` in a loop outside of such a block ends the loop and not
    the consumer: it goes on until it is drained or the connection is closed.
    """

    __slots__ = ("_native", "_of")

    def __init__(self, native: NativeConsumer, stream: str, name: str) -> None:
        self._native = native
        self._of = f"{stream}/{name}"

    def __repr__(self) -> str:
        return described(self, self._of, lambda: f"{self.state} held={self.held}")

    def next(self, timeout_ms: int | None = None) -> Delivery | None:
        """Waits for the next delivery; ``None`` when none came within ``timeout_ms``, or when the consumer was drained.

        Raises:
            NotFound: the stream or consumer was deleted.
            Closed: the connection was closed.
        """
        native = self._native.next(timeout_ms)
        return None if native is None else Delivery(native)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delivery:
        native = self._native.next(None)
        if native is None:
            raise StopIteration
        return Delivery(native)

    def run(self, handler: Callable[[Received], object], *, concurrency: int = 1, key: Key | None = None) -> None:
        """Runs ``handler`` over the deliveries until the consumer was drained, by `drain` in another thread or a signal handler.

        A message is acked when ``handler`` returns, and follows the retry policy when it raises; `GiveUp` makes it a dead letter
        at once. It is a plain function: ``async def`` is refused (`nats_bridge.aio` awaits it), and what returns a coroutine or a generator has failed. At most ``concurrency`` (1 to 1 024) messages are handled at a time, in threads of their own; with 1, in the
        thread that calls. With ``key``, messages of one key are handled one after the other in the order of the stream, and one
        that failed is tried again before those behind it::

            consumer.run(handle, concurrency=8, key=lambda message: message.subject)

        ``key`` is called in the thread that calls. Ctrl-C drains: handlers that run are waited for, then ``KeyboardInterrupt`` is
        raised. A handler that raises what is no ``Exception``, as ``sys.exit`` does, ends the run as well: its message is given back, which is no
        failure, handlers that run are waited for, then it is raised here.

        Raises:
            InvalidConfig: ``concurrency`` is out of range, or something else takes this consumer's deliveries.
            NotFound: the stream or consumer was deleted.
            Closed: the connection was closed.
        """
        runs_when_called("handler", handler)
        if key is not None:
            runs_when_called("key", key)
        jobs = self._native.jobs(concurrency, key is not None)
        ends = _Ends(self._native)
        try:
            if concurrency == 1:
                _work(jobs, key, ends, lambda job: _handle(job, handler, ends))
            else:
                with ThreadPoolExecutor(concurrency, thread_name_prefix="nats-bridge-handler") as threads:
                    try:
                        _work(jobs, key, ends, lambda job: threads.submit(_handle, job, handler, ends))
                    except BaseException:
                        # Before the threads are waited for.
                        self._native.begin_to_drain()
                        raise
        finally:
            self._native.begin_to_drain()
        ends.out()

    def begin_to_drain(self) -> None:
        """Stops pulling and gives back what was not handed out, as `drain`, without waiting. Handlers and signal handlers may call it."""
        self._native.begin_to_drain()

    def drain(self, budget_ms: int = DRAIN_BUDGET_MS) -> None:
        """Stops pulling, gives back what was not handed out, and waits until the rest is settled.

        Raises:
            Timeout: after ``budget_ms`` something is still not settled; it can still be.
        """
        self._native.drain(budget_ms)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if raised is None:
            self.drain()
            return
        try:
            self._native.leave(DRAIN_BUDGET_MS)
        except Error:
            # The server does not answer or is away: it delivers again by itself, after ``ack_wait_ms``.
            pass


class _Ends:
    """What ends a run from within a handler: the first exception that is no `Exception`."""

    __slots__ = ("_lock", "_native", "_raised")

    def __init__(self, native: NativeConsumer) -> None:
        self._native = native
        self._lock = threading.Lock()
        self._raised: BaseException | None = None

    def by(self, raised: BaseException) -> None:
        with self._lock:
            self._raised = self._raised or raised
        self._native.begin_to_drain()

    @property
    def now(self) -> bool:
        return self._raised is not None

    def out(self) -> None:
        if self._raised is not None:
            raise self._raised


def _work(jobs: Jobs, key: Key | None, ends: _Ends, handle: Callable[[Job], object]) -> None:
    while (job := jobs.next()) is not None:
        if ends.now:
            job.give_back()
        elif job.wants_key and key is not None:
            tell_key(job, key)
        else:
            handle(job)


def _handle(job: Job, handler: Callable[[Received], object], ends: _Ends) -> None:
    if ends.now:
        job.give_back()
        return
    try:
        refuse_unfinished(handler(Received(job.message)))
    except Exception as error:
        answer(job, error)
    except BaseException as raised:
        # First, so that it is not handed out here again.
        ends.by(raised)
        job.give_back()
    else:
        job.done()
