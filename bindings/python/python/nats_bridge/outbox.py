"""Messages that wait on disk until NATS has them, for threads. `nats_bridge.aio` has the same for asyncio."""

import json
from base64 import b64decode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from os import PathLike
from types import TracebackType
from typing import Self, TypedDict, Unpack

from ._native import Outbox as NativeOutbox
from .arguments import as_json, wrong_type
from .arguments import path as as_path
from .bridge import CLOSE_BUDGET_MS, Bridge
from .errors import Error, Landed, described
from .message import Message
from .options import Buffer, Headers

__all__ = ["Outbox", "OutboxOptions", "OutboxStatus", "Queued", "Refused", "open_outbox", "queued", "read_refused", "read_status", "settings"]


class OutboxOptions(TypedDict, total=False):
    """How much an outbox may hold, and how it sends."""

    max_entries: int | None
    """The most entries, waiting and refused together; default 100 000."""
    max_bytes: int | None
    """The most bytes of those; default 256 MiB."""
    max_in_flight: int | None
    """How many messages are under way at once, of as many subjects; 1 to 32 768; default 256."""
    first_pause_ms: int | None
    """The pause after the first failure of a message that may pass; default 200."""
    max_pause_ms: int | None
    """The longest pause; default 15 000."""
    no_stream_wait_ms: int | None
    """For how long "no stream takes the subject" is taken for something that passes; default 60 000."""
    region: str | None
    """A word that generated message ids start with; letters, digits, ``-``; default none."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A message that is on disk."""

    number: int
    """Its number in the outbox; numbers rise."""
    id: str
    """The id that it will be published with, also when it was generated."""


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """What an outbox holds."""

    waiting: int
    """Entries that wait to be published or confirmed."""
    refused: int
    """Entries that were refused."""
    bytes: int
    """Bytes of both."""
    oldest_ms: int | None
    """How long ago the oldest that waits was put."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that was refused for good, and stays until it is retried or discarded."""

    number: int
    """Its number in the outbox."""
    subject: str
    """The subject that it was to be published to."""
    payload: bytes
    """The payload."""
    headers: Sequence[tuple[str, str]]
    """The headers, in their order."""
    id: str
    """The id."""
    put_at: datetime
    """When it was put."""
    refused_at: datetime
    """When it was refused."""
    reason: str
    """The `Error.code`, such as ``too_large``."""
    why: str
    """The error's text."""
    landed: Landed
    """Whether an earlier attempt may have been stored nevertheless."""


def settings(path: str | PathLike[str], options: OutboxOptions) -> str:
    """The settings as the core reads them."""
    return as_json(**options, path=as_path("path", path))


def queued(number: int, id: str) -> Queued:
    """A message that is on disk."""
    return Queued(number, id)


def read_status(text: str) -> OutboxStatus:
    """What an outbox holds, from the core's JSON."""
    return OutboxStatus(**json.loads(text))


def read_refused(text: str) -> list[Refused]:
    """What was refused, from the core's JSON."""
    return [
        Refused(
            number=one["number"],
            subject=one["subject"],
            payload=b64decode(one["payload"]),
            headers=[(name, value) for name, value in one["headers"]],
            id=one["id"],
            put_at=datetime.fromtimestamp(one["put_at_ms"] / 1000, timezone.utc),
            refused_at=datetime.fromtimestamp(one["refused_at_ms"] / 1000, timezone.utc),
            reason=one["reason"],
            why=one["why"],
            landed=one["landed"],
        )
        for one in json.loads(text)
    ]


def open_outbox(path: str | PathLike[str], **options: Unpack[OutboxOptions]) -> "Outbox":
    """Opens an outbox in this file, which is made if it does not exist. NATS is not needed for it::

        with nats_bridge.open_outbox("orders.outbox") as outbox:
            outbox.put("orders.new", b"one", id="order-1")  # on disk
            with nats_bridge.connect() as bridge:
                outbox.start(bridge)  # from now on it is published
                outbox.drain()

    Raises:
        InvalidConfig: an option is wrong.
        InUse: another process has the file open, or this one has already.
        Corrupt: the file is damaged, or is not an outbox. It is left as it is.
        DiskError: it cannot be read or written, or its directory is not there.
    """
    return Outbox(NativeOutbox.open(settings(path, options)))


class Outbox:
    """A bounded queue of messages on disk, in front of JetStream. Threads may share it.

    Messages are published in the order of their subject with the id that they were given here, and are removed once JetStream has
    confirmed them. What may pass is tried again for ever; what the server refuses for good is kept, and listed by `refused`.
    """

    __slots__ = ("_native",)

    def __init__(self, native: NativeOutbox) -> None:
        self._native = native

    def __repr__(self) -> str:
        def held() -> str:
            status = self.status()
            return f"waiting={status.waiting} refused={status.refused} bytes={status.bytes}"

        return described(self, "", held)

    def start(self, bridge: Bridge) -> None:
        """Publishes what waits, and what is put from now on, over this connection.

        Raises:
            Conflict: it was started before.
            Closed: the outbox or the connection was closed.
        """
        if not isinstance(bridge, Bridge):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise wrong_type("bridge", "a Bridge", bridge)
        self._native.start(bridge._native)  # pyright: ignore[reportPrivateUsage]

    def put(
        self,
        subject: str,
        payload: Buffer,
        *,
        id: str | None = None,
        headers: Headers | None = None,
        schema: str | None = None,
    ) -> Queued:
        """Takes one message: when this returns, it is on disk, and will be published.

        Raises:
            InvalidMessage: it cannot be sent as it is.
            OutboxFull: the outbox holds as much as it may.
            DiskError, Corrupt: the file cannot be written.
            Closed: the outbox was closed.
            Nothing was accepted in any of these cases.
        """
        return queued(*self._native.put(subject, payload, id, headers, schema))

    def put_many(self, messages: Iterable[Message | tuple[str, Buffer]]) -> list[Queued]:
        """Takes several messages in their order, all of them or none. Raises as `put`."""
        return [queued(*one) for one in self._native.put_many(messages)]

    def status(self) -> OutboxStatus:
        """What it holds at present."""
        return read_status(self._native.status())

    def refused(self, *, first: int = 0, limit: int = 100) -> list[Refused]:
        """At most ``limit`` of those that were refused, the oldest first, from number ``first`` on."""
        return read_refused(self._native.ask("refused", as_json(first=first, limit=limit)))

    def retry(self, number: int) -> int:
        """Lets one that was refused wait again, behind all others of its subject; gives its new number.

        Raises:
            NotFound: none was refused under that number.
        """
        return int(self._native.ask("retry", as_json(number=number)))

    def discard(self, number: int) -> None:
        """Gives up one that was refused: it is in the file no longer. Raises as `retry`."""
        self._native.ask("discard", as_json(number=number))

    def drain(self, budget_ms: int = CLOSE_BUDGET_MS) -> None:
        """Waits until nothing waits. What was refused does not count.

        Raises:
            Timeout: something waits still after ``budget_ms``.
        """
        self._native.ask("drain", as_json(budget_ms=budget_ms))

    def close(self, budget_ms: int = CLOSE_BUDGET_MS) -> None:
        """Takes nothing more, waits at most ``budget_ms`` until nothing waits, and closes the file. Closing twice is fine.

        Raises:
            Timeout: something waits still; it is in the file, and goes when that is opened and started again.
        """
        self._native.ask("close", as_json(budget_ms=budget_ms))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Error as error:
            if raised is None:
                raise
            raised.add_note(f"closing the outbox failed too: {error}")
