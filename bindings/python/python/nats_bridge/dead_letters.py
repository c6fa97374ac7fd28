"""Dead letters: messages that were given up and kept whole, and what can be done with them."""

import json
from base64 import b64decode
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from typing import Literal, TypeAlias, Unpack

from ._native import Bridge as NativeBridge
from .arguments import as_json, crossing, path
from .errors import described
from .options import DeadLetterFilter

__all__ = ["DeadLetter", "DeadLetterGroup", "DeadLetters", "GroupBy", "Imported", "Redriven", "Groups", "Letters", "call", "read_groups", "read_letters"]

GroupBy: TypeAlias = Literal["reason", "fingerprint", "consumer"]
"""What letters of one group share: the reason; consumer, reason and class of failure; the consumer."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up."""

    sequence: int
    """Its sequence in the dead-letter stream."""
    stored_at: datetime
    """When it became a dead letter."""
    payload: bytes
    """The original payload."""
    headers: dict[str, list[str]]
    """The original headers, ``Nats-Msg-Id`` included."""
    subject: str
    """The subject that it was published to."""
    stream: str
    """The stream that it was in."""
    stream_sequence: int
    """Its sequence in that stream."""
    consumer: str
    """The consumer that gave it up."""
    reason: str
    """Why it was given up."""
    detail: str
    """What the last failure said."""
    fingerprint: str
    """What it shares with failures of the same consumer, reason and class."""
    attempts: int
    """How often it was delivered to a handler."""
    first_failed_at: str
    """When it failed first, RFC 3339."""
    last_failed_at: str
    """When it failed last, RFC 3339."""
    host: str
    """The host that gave it up."""
    redrives: int
    """How often it was redriven before."""
    encrypted_with: str | None
    """The key that its payload is encrypted under; ``None`` when it is not encrypted."""


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """Dead letters that have something in common."""

    key: str
    """What they share."""
    letters: int
    """How many they are."""
    payload_bytes: int
    """The bytes of their payloads."""
    first_sequence: int
    """The sequence of the first one."""
    last_sequence: int
    """The sequence of the last one."""
    consumer: str
    """The last one's consumer."""
    reason: str
    """The last one's reason."""
    detail: str
    """The last one's detail."""
    last_failed_at: str
    """When the last one failed last, RFC 3339."""


@dataclass(frozen=True, slots=True)
class Redriven:
    """How a redrive ended."""

    redriven: int
    """Stored where they were to go, and removed here; in a dry run, how many would be."""
    failed_again: int
    """Of those, how many are dead letters again already."""
    stopped: str | None
    """Why it ended before all was redriven."""
    last_sequence: int
    """The last letter that was looked at."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    stored: int
    """Lines that are letters in the stream now."""
    duplicates: int
    """Lines whose letter was there already."""


# The class below has a method named `list`.
Groups: TypeAlias = list[DeadLetterGroup]
Letters: TypeAlias = list[DeadLetter]


class DeadLetters:
    """The dead letters of one stream. Made by `nats_bridge.Bridge.dead_letters`; ``which`` narrows down what is meant."""

    __slots__ = ("_native", "_stream")

    def __init__(self, native: NativeBridge, stream: str) -> None:
        self._native = native
        self._stream = stream
        self._native.ask("dead_letters.open", call(stream, {}))

    def __repr__(self) -> str:
        return described(self, self._stream, lambda: "")

    def count(self) -> int:
        """How many letters lie in the stream."""
        return int(self._native.ask("dead_letters.count", call(self._stream, {})))

    def list(self, by: GroupBy = "reason", **which: Unpack[DeadLetterFilter]) -> Groups:
        """Counts what is there, put together by what it has in common; the largest group first."""
        return read_groups(self._native.ask("dead_letters.list", call(self._stream, which, by=by)))

    def peek(self, limit: int = 10, **which: Unpack[DeadLetterFilter]) -> Letters:
        """The oldest letters, which stay where they are."""
        return read_letters(self._native.ask("dead_letters.peek", call(self._stream, which, limit=limit)))

    def show(self, sequence: int, *, decrypt: str | PathLike[str] | None = None) -> DeadLetter:
        """One letter by its sequence in this stream; with the payload decrypted, if ``decrypt`` says where the keys are.

        Raises:
            NotFound: there is no letter at that sequence.
            UnknownKey, Decrypt: it cannot be decrypted.
        """
        keys = None if decrypt is None else path("decrypt", decrypt)
        answer = self._native.ask("dead_letters.show", call(self._stream, {}, sequence=sequence, decrypt=keys))
        return read_letters(f"[{answer}]")[0]

    def redrive(
        self,
        *,
        to: str | None = None,
        rate_per_second: float = 50,
        limit: int | None = None,
        dry_run: bool = False,
        max_failed_again: float = 0.2,
        **which: Unpack[DeadLetterFilter],
    ) -> Redriven:
        """Publishes letters again, to the subject that each was published to or to ``to``, and removes each once it is stored.

        Each goes with a fresh id. It stops by itself when more than the share ``max_failed_again`` is a dead letter again.
        Ended by Ctrl-C, it is carried on by calling it again.

        Raises:
            InvalidConfig: the rate is not above 0.
        """
        arguments = call(
            self._stream,
            which,
            to=to,
            rate_per_second=rate_per_second,
            limit=limit,
            dry_run=dry_run,
            max_failed_again=max_failed_again,
        )
        return Redriven(**json.loads(self._native.ask("dead_letters.redrive", arguments)))

    def park(self, **which: Unpack[DeadLetterFilter]) -> int:
        """Moves letters to ``{stream}_PARKED``, out of the way of a redrive. Gives how many."""
        return int(self._native.ask("dead_letters.park", call(self._stream, which)))

    def export(self, file: str | PathLike[str], **which: Unpack[DeadLetterFilter]) -> int:
        """Writes letters to a new file as lines of JSON, and leaves them where they are. Gives how many.

        Raises:
            InvalidConfig: the file exists, or cannot be made.
        """
        return int(self._native.ask("dead_letters.export", call(self._stream, which, file=path("file", file))))

    def purge(self, file: str | PathLike[str], **which: Unpack[DeadLetterFilter]) -> int:
        """Writes letters to a new file as lines of JSON, and removes them once they are on its disk. Gives how many.

        Raises:
            InvalidConfig: the file exists, or cannot be made.
        """
        return int(self._native.ask("dead_letters.purge", call(self._stream, which, file=path("file", file))))

    def bring_back(self, file: str | PathLike[str]) -> Imported:
        """Stores what `export` or `purge` wrote here again.

        Raises:
            InvalidConfig: the file cannot be read.
            InvalidMessage: a line is not a letter; the lines before it are stored.
        """
        return Imported(**json.loads(self._native.ask("dead_letters.import", call(self._stream, {}, file=path("file", file)))))


def call(stream: str, which: DeadLetterFilter, **more: str | float | None) -> str:
    """The arguments of a verb, as JSON."""
    return as_json(stream=stream, filter=crossing(which), **more)


def read_groups(answer: str) -> list[DeadLetterGroup]:
    """Groups, of what the core says."""
    return [DeadLetterGroup(**group) for group in json.loads(answer)]


def read_letters(answer: str) -> list[DeadLetter]:
    """Letters, of what the core says."""
    letters: list[DeadLetter] = []
    for given in json.loads(answer):
        headers: dict[str, list[str]] = {}
        for name, value in given.pop("headers"):
            headers.setdefault(name, []).append(value)
        payload, stored_at = b64decode(given.pop("payload_base64")), datetime.fromisoformat(given.pop("stored_at"))
        letters.append(DeadLetter(payload=payload, stored_at=stored_at, headers=headers, **given))
    return letters
