"""Messages that wait on disk until NATS has them, for asyncio."""

from collections.abc import Generator, Iterable
from os import PathLike
from types import TracebackType
from typing import Unpack

from .._native import Outbox as NativeOutbox
from ..arguments import as_json, wrong_type
from ..bridge import CLOSE_BUDGET_MS
from ..errors import Error, described
from ..message import Message
from ..options import Buffer, Headers
from ..outbox import OutboxOptions, OutboxStatus, Queued, Refused, queued, read_refused, read_status, settings
from .bridge import Bridge
from .mailbox import Mailbox

__all__ = ["Outbox", "open_outbox"]


class open_outbox:
    """Opens an outbox: ``async with open_outbox(path) as outbox`` or ``await open_outbox(path)``; see `nats_bridge.open_outbox`."""

    __slots__ = ("_outbox", "_settings")

    def __init__(self, path: str | PathLike[str], **options: Unpack[OutboxOptions]) -> None:
        self._settings = settings(path, options)
        self._outbox: Outbox | None = None

    def __await__(self) -> Generator[object, None, "Outbox"]:
        return self._open().__await__()

    async def __aenter__(self) -> "Outbox":
        self._outbox = await self._open()
        return self._outbox

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._outbox is not None:
            await self._outbox.__aexit__(kind, raised, traceback)

    async def _open(self) -> "Outbox":
        mailbox = Mailbox()
        native = await mailbox.wait_or_close(NativeOutbox.open_start, self._settings)
        return Outbox(native, mailbox)


class Outbox:
    """A bounded queue of messages on disk, in front of JetStream; see `nats_bridge.Outbox`. It belongs to one event loop."""

    __slots__ = ("_mailbox", "_native")

    def __init__(self, native: NativeOutbox, mailbox: Mailbox) -> None:
        self._native = native
        self._mailbox = mailbox

    def __repr__(self) -> str:
        def held() -> str:
            status = self.status()
            return f"waiting={status.waiting} refused={status.refused} bytes={status.bytes}"

        return described(self, "", held)

    async def start(self, bridge: Bridge) -> None:
        """Publishes over this connection from now on; see `nats_bridge.Outbox.start`."""
        if not isinstance(bridge, Bridge):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise wrong_type("bridge", "a Bridge of nats_bridge.aio", bridge)
        await self._mailbox.wait(self._native.start_start, bridge._native)  # pyright: ignore[reportPrivateUsage]

    async def put(
        self,
        subject: str,
        payload: Buffer,
        *,
        id: str | None = None,
        headers: Headers | None = None,
        schema: str | None = None,
    ) -> Queued:
        """Takes one message: when this returns, it is on disk; see `nats_bridge.Outbox.put`."""
        return queued(*await self._mailbox.wait(self._native.put_start, subject, payload, id, headers, schema))

    async def put_many(self, messages: Iterable[Message | tuple[str, Buffer]]) -> list[Queued]:
        """Takes several messages in their order, all of them or none; see `nats_bridge.Outbox.put_many`."""
        return [queued(*one) for one in await self._mailbox.wait(self._native.put_many_start, messages)]

    def status(self) -> OutboxStatus:
        """What it holds at present."""
        return read_status(self._native.status())

    async def refused(self, *, first: int = 0, limit: int = 100) -> list[Refused]:
        """Those that were refused; see `nats_bridge.Outbox.refused`."""
        return read_refused(await self._ask("refused", first=first, limit=limit))

    async def retry(self, number: int) -> int:
        """Lets one that was refused wait again; see `nats_bridge.Outbox.retry`."""
        return int(await self._ask("retry", number=number))

    async def discard(self, number: int) -> None:
        """Gives up one that was refused; see `nats_bridge.Outbox.discard`."""
        await self._ask("discard", number=number)

    async def drain(self, budget_ms: int = CLOSE_BUDGET_MS) -> None:
        """Waits until nothing waits; see `nats_bridge.Outbox.drain`."""
        await self._ask("drain", budget_ms=budget_ms)

    async def close(self, budget_ms: int = CLOSE_BUDGET_MS) -> None:
        """Closes the file; see `nats_bridge.Outbox.close`."""
        try:
            await self._ask("close", budget_ms=budget_ms)
        finally:
            self._mailbox.close()

    async def _ask(self, verb: str, **given: int) -> str:
        return await self._mailbox.wait(self._native.ask_start, verb, as_json(**given))

    async def __aenter__(self) -> "Outbox":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except Error as error:
            if raised is None:
                raise
            raised.add_note(f"closing the outbox failed too: {error}")
