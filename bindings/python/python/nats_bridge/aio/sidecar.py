"""The way from RabbitMQ to JetStream and back inside the process, for asyncio."""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, Unpack

from .._answers import (
    asked,
    read_adopted,
    read_backfill,
    read_changes,
    read_drain,
    read_log,
    read_rehearsal,
    read_status,
    read_verdict,
    there,
    told,
)
from .._native import Sidecar as NativeSidecar
from ..arguments import as_json, function, number
from ..cutover import Adopted, ChangeRecord, CutoverStatus, LogEntry, Verdict
from ..cutover_work import BackfillReport, Drain, Rehearsal
from ..errors import Closed
from ..listener import STOP_BUDGET_MS, started_before
from ..options import SidecarOptions
from ..sidecar import DRAIN_EVERY, DRAIN_TIMEOUT_MS, EVERY, STAY_MS, SidecarFacts, backfill_asked
from .mailbox import Mailbox

__all__ = ["Sidecar"]


class Sidecar(SidecarFacts):
    """A sidecar between this application's RabbitMQ client and two brokers; see `nats_bridge.Sidecar`::

    async with Sidecar(rabbit="amqp://user:password@rabbit/") as url:
        connection = await aio_pika.connect(url)
    """

    __slots__ = ("_mailbox",)

    def __init__(
        self, rabbit: str, nats: str | Sequence[str] = "nats://127.0.0.1:4222", **options: Unpack[SidecarOptions]
    ) -> None:
        super().__init__(rabbit, nats, **options)
        self._mailbox: Mailbox | None = None

    async def start(self) -> Self:
        """Starts it; see `nats_bridge.Sidecar.start`. It belongs to the event loop that runs now."""
        if self._mailbox is not None:
            raise started_before()
        self._mailbox = Mailbox()
        start = self._mailbox.wait_or_close(NativeSidecar.start_start, self._servers, self._connect, self._given)
        self._sidecar = await start
        self._native = self._sidecar.listener
        return self

    async def _ask(self, verb: str, given: str = "{}") -> str:
        if self._mailbox is None:
            raise Closed("closed: the sidecar was not started", code="closed")
        return await self._mailbox.wait(self._control().ask_start, verb, given)

    async def status(self) -> CutoverStatus:
        """Where the cutover stands; see `nats_bridge.Sidecar.status`."""
        return read_status(await self._ask("status"))

    async def gate(self) -> Verdict:
        """May the cutover go on?"""
        return read_verdict(await self._ask("gate"))

    async def changes(self) -> list[ChangeRecord]:
        """The last changes, newest first."""
        return read_changes(await self._ask("changes"))

    async def observe(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """RabbitMQ does everything, and nothing is compared."""
        return read_adopted(await self._ask("observe", asked(by, reason)))

    async def shadow(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """Copies go to JetStream and are compared; see `nats_bridge.Sidecar.shadow`. Cancelled, it is carried through."""
        return read_adopted(await self._ask("shadow", asked(by, reason)))

    async def weight(
        self, percent: float, *, by: str | None = None, reason: str = "", force: bool = False, unrehearsed: bool = False
    ) -> Adopted:
        """Gives JetStream this share of the ordering keys; see `nats_bridge.Sidecar.weight`. Cancelled, it is carried through."""
        return read_adopted(await self._ask("weight", asked(by, reason, percent=percent, force=force, unrehearsed=unrehearsed)))

    async def rollback(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """Gives everything back to RabbitMQ at once. Cancelled, it is carried through."""
        return read_adopted(await self._ask("rollback", asked(by, reason)))

    async def detach(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """Lets go of RabbitMQ for good; see `nats_bridge.Sidecar.detach`. Cancelled, it is carried through."""
        return read_adopted(await self._ask("detach", asked(by, reason)))

    async def rehearse(self, *, stay_ms: int = STAY_MS, by: str | None = None, reason: str = "") -> Rehearsal:
        """Rolls back and goes up to the same weight again, measured; see `nats_bridge.Sidecar.rehearse`. Cancelled, it is carried through."""
        rehearsal = there(read_rehearsal(await self._ask("rehearse", asked(by, reason, stay_ms=stay_ms))))
        while rehearsal.running:
            await asyncio.sleep(EVERY)
            rehearsal = there(await self.rehearsal())
        return rehearsal

    async def rehearsal(self) -> Rehearsal | None:
        """The last rehearsal; see `nats_bridge.Sidecar.rehearsal`."""
        return read_rehearsal(await self._ask("rehearsal"))

    async def backfill(
        self,
        queues: str | Sequence[str] = (),
        *,
        dry_run: bool = False,
        by: str | None = None,
        reason: str = "",
        progress: Callable[[BackfillReport], None] | None = None,
    ) -> BackfillReport:
        """Makes copies on JetStream of what lay in RabbitMQ; see `nats_bridge.Sidecar.backfill`. Cancelled, it is carried through."""
        if progress is not None:
            function("progress", progress)
        report = there(read_backfill(await self._ask("backfill", backfill_asked(queues, dry_run, by, reason))))
        while report.running:
            told(progress, report)
            await asyncio.sleep(EVERY)
            report = there(await self.backfill_report())
        return report

    async def backfill_report(self) -> BackfillReport | None:
        """How far the last backfill is; see `nats_bridge.Sidecar.backfill_report`."""
        return read_backfill(await self._ask("backfill_report"))

    async def drain(
        self, *, timeout_ms: int = DRAIN_TIMEOUT_MS, progress: Callable[[Drain], None] | None = None
    ) -> Drain:
        """Waits until the side that lost its keys holds nothing any more; see `nats_bridge.Sidecar.drain`."""
        number("timeout_ms", timeout_ms)
        if progress is not None:
            function("progress", progress)
        loop = asyncio.get_running_loop()
        over = loop.time() + timeout_ms / 1_000
        while True:
            drain = read_drain(await self._ask("drain"))
            told(progress, drain)
            left = over - loop.time()
            if drain.drained or left <= 0:
                return drain
            await asyncio.sleep(min(DRAIN_EVERY, left))

    async def log(self, last: int = 50) -> list[LogEntry]:
        """Who asked for what and what became of it, newest first; see `nats_bridge.Sidecar.log`."""
        return read_log(await self._ask("log", as_json(last=last)))

    async def stop(self, budget_ms: int = STOP_BUDGET_MS) -> None:
        """Stops it; see `nats_bridge.Sidecar.stop`. Cancelled, it goes on stopping in the background."""
        if self._native is None or self._mailbox is None:
            return
        try:
            await self._mailbox.wait(self._native.stop_start, budget_ms)
        finally:
            self._mailbox.close()

    async def wait(self) -> None:
        """Waits until it was stopped; see `nats_bridge.Sidecar.wait`."""
        native = self._control().listener
        if self._mailbox is not None:
            await self._mailbox.wait(native.wait_start)

    async def __aenter__(self) -> str:
        return (await self.start()).url

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
