"""The ledger, for asyncio."""

from .._native import Ledger as NativeLedger
from .._native import LedgerEntry as NativeEntry
from ..ledger import LedgerState
from .mailbox import Mailbox

__all__ = ["Ledger", "LedgerEntry"]


class LedgerEntry:
    """An id that was begun; see `nats_bridge.LedgerEntry`."""

    __slots__ = ("_mailbox", "_native")

    def __init__(self, native: NativeEntry, mailbox: Mailbox) -> None:
        self._native = native
        self._mailbox = mailbox

    @property
    def state(self) -> LedgerState:
        """Whether it is this worker's."""
        return self._native.state

    async def done(self) -> None:
        """Says that it is done; see `nats_bridge.LedgerEntry.done`."""
        await self._mailbox.wait(self._native.done_start)

    async def undo(self) -> None:
        """Says that it was not done; see `nats_bridge.LedgerEntry.undo`."""
        await self._mailbox.wait(self._native.undo_start)


class Ledger:
    """A key-value bucket with one entry for each id that was begun or done; see `nats_bridge.Ledger`."""

    __slots__ = ("_mailbox", "_native")

    def __init__(self, native: NativeLedger, mailbox: Mailbox) -> None:
        self._native = native
        self._mailbox = mailbox

    async def begin(self, id: str) -> LedgerEntry:
        """Begins to handle the message with this id; see `nats_bridge.Ledger.begin`."""
        return LedgerEntry(await self._mailbox.wait(self._native.begin_start, id), self._mailbox)
