"""AMQP 0-9-1 on JetStream inside the process, for asyncio."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from .._native import AmqpListener as NativeListener
from ..bridge import server_list
from ..listener import STOP_BUDGET_MS, ListenerState, running, started_before
from ..options import AmqpListenerOptions
from .mailbox import Mailbox

__all__ = ["AmqpListener"]


class AmqpListener:
    """An AMQP listener over JetStream in this process; see `nats_bridge.AmqpListener`::

    async with AmqpListener(nats="nats://127.0.0.1:4222") as url:
        connection = await aio_pika.connect(url)
    """

    __slots__ = ("_mailbox", "_native", "_options", "_servers")

    def __init__(
        self, nats: str | Sequence[str] = "nats://127.0.0.1:4222", **options: Unpack[AmqpListenerOptions]
    ) -> None:
        self._servers = server_list(nats)
        self._options = options
        self._native: NativeListener | None = None
        self._mailbox: Mailbox | None = None

    async def start(self) -> Self:
        """Starts it; see `nats_bridge.AmqpListener.start`. It belongs to the event loop that runs now."""
        if self._mailbox is not None:
            raise started_before()
        self._mailbox = Mailbox()
        try:
            self._native = await self._mailbox.wait(NativeListener.start_start, self._servers, self._options)
        except BaseException:
            self._mailbox.close()
            raise
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

    @property
    def url(self) -> str:
        """The URL for clients on this machine: the first user, with the password, on the first virtual host."""
        return running(self._native).url

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for AMQP clients."""
        return running(self._native).address

    @property
    def tls_address(self) -> tuple[str, int] | None:
        """Host and port for AMQPS clients, if ``listen_tls`` was given."""
        return running(self._native).tls_address

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return running(self._native).connections

    @property
    def state(self) -> ListenerState:
        """How it is."""
        return "new" if self._native is None else self._native.state[0]

    @property
    def trouble(self) -> str | None:
        """Why it ``failed``."""
        return None if self._native is None else self._native.state[1]

    async def __aenter__(self) -> str:
        return (await self.start()).url

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
