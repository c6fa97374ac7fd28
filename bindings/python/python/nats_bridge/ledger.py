"""Which messages were handled, for effects that must not happen twice."""

from typing import Literal, TypeAlias

from ._native import Ledger as NativeLedger
from ._native import LedgerEntry as NativeEntry

__all__ = ["Ledger", "LedgerEntry", "LedgerState"]

LedgerState: TypeAlias = Literal["first", "done", "elsewhere"]
"""``first``: nobody has done it. ``done``: it was done before. ``elsewhere``: another worker has begun it; come back later."""


class LedgerEntry:
    """An id that was begun. One that is ``first`` is ended by `done` or `undo`; else its lease has to run out."""

    __slots__ = ("_native",)

    def __init__(self, native: NativeEntry) -> None:
        self._native = native

    @property
    def state(self) -> LedgerState:
        """Whether it is this worker's."""
        return self._native.state

    def done(self) -> None:
        """Says that it is done: whoever begins it again is told so.

        Raises:
            Conflict: the lease was over and another worker has begun it.
            InvalidConfig: it is not this worker's, or was ended before.
        """
        self._native.done()

    def undo(self) -> None:
        """Says that it was not done: whoever comes next begins at once. Errors are those of `done`."""
        self._native.undo()


class Ledger:
    """A key-value bucket with one entry for each id that was begun or done. Made by `nats_bridge.Bridge.ledger`::

        entry = ledger.begin(delivery.id or "")
        if entry.state == "first":
            charge(delivery.payload)
            entry.done()
        if entry.state == "elsewhere":
            delivery.retry("another worker has it")
        else:
            delivery.ack()
    """

    __slots__ = ("_native",)

    def __init__(self, native: NativeLedger) -> None:
        self._native = native

    def begin(self, id: str) -> LedgerEntry:
        """Begins to handle the message with this id, unless that was done or another worker is at it.

        Raises:
            InvalidMessage: the id is empty.
            Unreachable: the bucket cannot be read or written; nothing is known then.
        """
        return LedgerEntry(self._native.begin(id))
