"""Dead letters, for asyncio."""

import json
from os import PathLike
from typing import Unpack

from .._native import Bridge as NativeBridge
from ..arguments import path
from ..dead_letters import (
    DeadLetter,
    GroupBy,
    Groups,
    Imported,
    Letters,
    Redriven,
    call,
    read_groups,
    read_letters,
)
from ..errors import described
from ..options import DeadLetterFilter
from .mailbox import Mailbox

__all__ = ["DeadLetters"]


class DeadLetters:
    """The dead letters of one stream; see `nats_bridge.DeadLetters`. Made by `nats_bridge.aio.Bridge.dead_letters`."""

    __slots__ = ("_mailbox", "_native", "_stream")

    def __init__(self, native: NativeBridge, mailbox: Mailbox, stream: str) -> None:
        self._native = native
        self._mailbox = mailbox
        self._stream = stream

    def __repr__(self) -> str:
        return described(self, self._stream, lambda: "")

    async def _ask(self, verb: str, arguments: str) -> str:
        return await self._mailbox.wait(self._native.ask_start, f"dead_letters.{verb}", arguments)

    async def count(self) -> int:
        """How many letters lie in the stream."""
        return int(await self._ask("count", call(self._stream, {})))

    async def list(self, by: GroupBy = "reason", **which: Unpack[DeadLetterFilter]) -> Groups:
        """Counts what is there; see `nats_bridge.DeadLetters.list`."""
        return read_groups(await self._ask("list", call(self._stream, which, by=by)))

    async def peek(self, limit: int = 10, **which: Unpack[DeadLetterFilter]) -> Letters:
        """The oldest letters, which stay where they are."""
        return read_letters(await self._ask("peek", call(self._stream, which, limit=limit)))

    async def show(self, sequence: int, *, decrypt: str | PathLike[str] | None = None) -> DeadLetter:
        """One letter by its sequence in this stream; see `nats_bridge.DeadLetters.show`."""
        keys = None if decrypt is None else path("decrypt", decrypt)
        return read_letters(f"[{await self._ask('show', call(self._stream, {}, sequence=sequence, decrypt=keys))}]")[0]

    async def redrive(
        self,
        *,
        to: str | None = None,
        rate_per_second: float = 50,
        limit: int | None = None,
        dry_run: bool = False,
        max_failed_again: float = 0.2,
        **which: Unpack[DeadLetterFilter],
    ) -> Redriven:
        """Publishes letters again; see `nats_bridge.DeadLetters.redrive`. Cancelled, it is carried on by calling it again."""
        arguments = call(
            self._stream,
            which,
            to=to,
            rate_per_second=rate_per_second,
            limit=limit,
            dry_run=dry_run,
            max_failed_again=max_failed_again,
        )
        return Redriven(**json.loads(await self._ask("redrive", arguments)))

    async def park(self, **which: Unpack[DeadLetterFilter]) -> int:
        """Moves letters to ``{stream}_PARKED``; see `nats_bridge.DeadLetters.park`."""
        return int(await self._ask("park", call(self._stream, which)))

    async def export(self, file: str | PathLike[str], **which: Unpack[DeadLetterFilter]) -> int:
        """Writes letters to a new file; see `nats_bridge.DeadLetters.export`."""
        return int(await self._ask("export", call(self._stream, which, file=path("file", file))))

    async def purge(self, file: str | PathLike[str], **which: Unpack[DeadLetterFilter]) -> int:
        """Writes letters to a new file and removes them; see `nats_bridge.DeadLetters.purge`."""
        return int(await self._ask("purge", call(self._stream, which, file=path("file", file))))

    async def bring_back(self, file: str | PathLike[str]) -> Imported:
        """Stores what `export` or `purge` wrote here again; see `nats_bridge.DeadLetters.bring_back`."""
        return Imported(**json.loads(await self._ask("import", call(self._stream, {}, file=path("file", file)))))
