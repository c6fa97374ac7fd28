"""What to publish, for calls that take many."""

from typing import Literal, NamedTuple

from .options import Buffer, Headers

__all__ = ["Message"]


class Message(NamedTuple):
    """A message to publish. Where its id and headers are the default, a tuple of subject and payload will do."""

    subject: str
    """The subject to publish it to."""
    payload: Buffer
    """The payload."""
    id: str | Literal[False] | None = None
    """What the stream recognises duplicates by; ``None`` makes a fresh one, ``False`` sends none."""
    headers: Headers | None = None
    """Headers by name."""
    schema: str | None = None
    """The schema that the payload has to fit: ``order`` for the newest version, ``order/3`` for that one."""
