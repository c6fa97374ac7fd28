"""AMQP 0-9-1 on JetStream inside the process, for asyncio."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from .._native import AmqpListener as NativeListener
from ..listener import STOP_BUDGET_MS, ListenerFacts, running, started_before
from ..options import AmqpListenerOptions
from .mailbox import Mailbox

__all__ = ["AmqpListener"]


class AmqpListener(ListenerFacts):
    """An AMQP listener over JetStream in this process; see `nats_bridge.AmqpListener`::

    async with AmqpListener(nats="nats://127.0.0.1:4222") as url:
        connection = await aio_pika.connect(url)
    """

    __slots__ = ("_mailbox",)

    def __init__(
        self, nats: str | Sequence[str] = "nats://127.0.0.1:4222", **options: Unpack[AmqpListenerOptions]
    ) -> None:
        super().__init__(nats, **options)
        self._mailbox: Mailbox | None = None

    async def start(self) -> Self:
        """Starts it; see `nats_bridge.AmqpListener.start`. It belongs to the event loop that runs now."""
        if self._mailbox is not None:
            raise started_before()
        self._mailbox = Mailbox()
        start = self._mailbox.wait_or_close(NativeListener.start_start, self._servers, self._options)
        self._native = await start
        return self

    async def stop(self, budget_ms: int = STOP_BUDGET_MS) -> None:
        """Stops it; see `nats_bridge.AmqpListener.stop`. Cancelled, it goes on stopping in the background."""
        if self._native is None or self._mailbox is None:
            return
        try:
            await self._mailbox.wait(self._native.stop_start, budget_ms)
        finally:
            self._mailbox.close()

    async def wait(self) -> None:
        """Waits until it was stopped; see `nats_bridge.AmqpListener.wait`."""
        native = running(self._native)
        if self._mailbox is not None:
            await self._mailbox.wait(native.wait_start)

    async def __aenter__(self) -> str:
        return (await self.start()).url

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
