"""What both faces of a delivery say about the message."""

from datetime import datetime
from typing import Literal, TypeAlias

from ._native import Delivery as NativeDelivery

__all__ = ["Reason", "Received", "Why", "failure"]

Reason: TypeAlias = Literal[
    "handler_error",
    "timeout",
    "schema",
    "decrypt",
    "no_handler",
    "expired",
    "max_deliver",
    "rejected",
    "too_large",
    "crash_loop",
]
"""Why a message was given up: the value of the header ``Dead-Letter-Reason``."""

Why: TypeAlias = str | BaseException
"""What failed: a text, or an exception, whose class groups failures of one kind."""


class Received:
    """A message as it was received."""

    __slots__ = ("_native",)

    def __init__(self, native: NativeDelivery) -> None:
        self._native = native

    @property
    def subject(self) -> str:
        """The subject it was published to."""
        return self._native.subject

    @property
    def payload(self) -> bytes:
        """The payload; decrypted, if the consumer does that."""
        return self._native.payload

    @property
    def key_id(self) -> str | None:
        """The key that the payload was decrypted with; ``None`` when it was not encrypted, or the consumer does not decrypt."""
        return self._native.key_id

    @property
    def id(self) -> str | None:
        """The id that it was published with."""
        return self._native.id

    @property
    def headers(self) -> dict[str, list[str]]:
        """All headers, ``Nats-Msg-Id`` included."""
        return self._native.headers

    def header(self, name: str) -> str | None:
        """The first value of a header; names are compared exactly."""
        return self._native.header(name)

    @property
    def attempt(self) -> int:
        """Which attempt at this message it is, from 1: what a consumer that was drained had fetched and given to no handler does not count."""
        return self._native.attempt

    @property
    def fencing_number(self) -> int | None:
        """Under which lease of the single active consumer it came: higher with each instance that becomes the active one; ``None``
        without that option.

        Store it with the effect and refuse a lower one there: an instance that was cut off may still be handling a message when
        another has taken over.
        """
        return self._native.fencing_number

    @property
    def sequence(self) -> int:
        """Its sequence in the stream."""
        return self._native.sequence

    @property
    def stored_at(self) -> datetime:
        """When the stream stored it, in UTC."""
        return self._native.stored_at

    @property
    def pending(self) -> int:
        """How many messages the consumer had still to deliver after this one."""
        return self._native.pending

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.subject} sequence={self.sequence} attempt={self.attempt}>"


def failure(why: Why) -> tuple[str, str]:
    """The class and the text of what failed."""
    kind, text = ("error", why) if isinstance(why, str) else (type(why).__name__, str(why))
    # A text that is not Unicode must not keep a message from being settled.
    return kind, text.encode("utf-8", "replace").decode("utf-8")
