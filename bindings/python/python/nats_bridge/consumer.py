"""Consuming, for threads."""

from types import TracebackType
from typing import Literal, Self

from ._native import Consumer as NativeConsumer
from ._native import Settled
from .errors import Error
from .received import Reason, Received, Why, failure

__all__ = ["Consumer", "ConsumerState", "Delivery", "DRAIN_BUDGET_MS"]

DRAIN_BUDGET_MS = 5_000

ConsumerState = Literal["running", "paused", "draining", "stopped", "failed", "unknown"]
"""``paused``: a message that was given up cannot be stored as a dead letter; nothing new comes until it can."""


class Delivery(Received):
    """A message to be settled exactly once: `ack`, `retry` or `dead_letter`. A second settle raises `AlreadySettled`.

    While it is held, the server is told so, up to the consumer's ``max_run_ms``. Let go without having been settled, it
    counts as failed and follows the retry policy.
    """

    __slots__ = ()

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

    Leaving its ``with`` block drains it; an exception that leaves the block does not wait for the drain.
    """

    __slots__ = ("_native",)

    def __init__(self, native: NativeConsumer) -> None:
        self._native = native

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
        try:
            self.drain(DRAIN_BUDGET_MS if raised is None else 0)
        except Error:
            if raised is None:
                raise
