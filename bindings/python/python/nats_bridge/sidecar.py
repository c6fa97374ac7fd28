"""The way from RabbitMQ to JetStream and back inside the process, for threads: existing RabbitMQ clients connect to it."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, Unpack

from ._answers import (
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
from ._native import Sidecar as NativeSidecar
from .arguments import as_json, function, number, wrong_type
from .cutover import Adopted, ChangeRecord, CutoverStatus, LogEntry, Verdict
from .cutover_work import BackfillReport, Drain, Rehearsal
from .errors import Closed
from .listener import STOP_BUDGET_MS, ListenerFacts, started_before
from .options import ConnectOptions, SidecarOptions

__all__ = ["DRAIN_EVERY", "DRAIN_TIMEOUT_MS", "EVERY", "STAY_MS", "Sidecar", "SidecarFacts", "backfill_asked"]

EVERY = 0.2
DRAIN_EVERY = 0.5
DRAIN_TIMEOUT_MS = 600_000
STAY_MS = 5_000


def backfill_asked(queues: str | Sequence[str], dry_run: bool, by: str | None, reason: str) -> str:
    """What a backfill says, as JSON."""
    return asked(by, reason, queues=[queues] if isinstance(queues, str) else queues, dry_run=dry_run)


class SidecarFacts(ListenerFacts):
    """What a sidecar was asked for: the same for threads and for asyncio."""

    __slots__ = ("_connect", "_given", "_sidecar")

    def __init__(
        self, rabbit: str, nats: str | Sequence[str] = "nats://127.0.0.1:4222", **options: Unpack[SidecarOptions]
    ) -> None:
        super().__init__(nats)
        for name in options.keys() - SidecarOptions.__annotations__.keys():
            raise TypeError(f"there is no option '{name}'")
        connect = options.pop("connect", None)
        if not isinstance(connect, dict | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise wrong_type("connect", "dict", connect)
        self._connect: ConnectOptions = connect or {}
        self._given = as_json(rabbit=rabbit, **options)
        self._sidecar: NativeSidecar | None = None

    def _control(self) -> NativeSidecar:
        if self._sidecar is None:
            raise Closed("closed: the sidecar was not started", code="closed")
        return self._sidecar


class Sidecar(SidecarFacts):
    """A sidecar between this application's RabbitMQ client and two brokers: what ``nats-bridge sidecar`` is, without a program
    of its own. RabbitMQ does everything until `shadow` and `weight` say otherwise, and gets everything back by `rollback`::

        sidecar = Sidecar(rabbit="amqp://user:password@rabbit/", nats="nats://127.0.0.1:4222")
        with sidecar as url:
            connection = pika.BlockingConnection(pika.URLParameters(url))

    The user of ``rabbit`` is the sidecar's own and counts and publishes fences; clients log in with the users of RabbitMQ. One sidecar
    (or ``nats-bridge``) at a time serves a NATS account: a second one is a `Conflict` whose ``context["holder"]`` names the first. An
    application of several processes gives each of them ``shared=True``, or has ``nats-bridge sidecar`` beside them instead.
    """

    __slots__ = ()

    def start(self) -> Self:
        """Starts it; when it returns, clients can connect. A sidecar is started once, and takes the cutover up where it stands.

        Raises:
            InvalidConfig: an option is wrong; ``context["field"]`` names it.
            Conflict: the address is taken, another gateway serves this NATS account, or it was started before.
            Denied: RabbitMQ refuses the user of ``rabbit``, or NATS the login.
            Unreachable, Unsupported: as `nats_bridge.connect`. A RabbitMQ that does not answer is no error: it is waited for.
        """
        if self._sidecar is not None:
            raise started_before()
        self._sidecar = NativeSidecar.start(self._servers, self._connect, self._given)
        self._native = self._sidecar.listener
        return self

    def _ask(self, verb: str, given: str = "{}") -> str:
        return self._control().ask(verb, given)

    def status(self) -> CutoverStatus:
        """Where the cutover stands: phase, weight, both brokers, every queue, and what was compared (``parity``)."""
        return read_status(self._ask("status"))

    def gate(self) -> Verdict:
        """May the cutover go on?"""
        return read_verdict(self._ask("gate"))

    def changes(self) -> list[ChangeRecord]:
        """The last changes, newest first."""
        return read_changes(self._ask("changes"))

    def observe(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """RabbitMQ does everything, and nothing is compared; see `shadow`."""
        return read_adopted(self._ask("observe", asked(by, reason)))

    def shadow(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """RabbitMQ does everything; copies go to JetStream and are compared with what RabbitMQ delivers.

        ``by`` (default this process) and ``reason`` are kept with the change.

        Raises:
            ChangeRefused: the state is as it was; ``code`` says why, ``context["fix"]`` what to do.
            Conflict: somebody else has changed it at the same time.
        """
        return read_adopted(self._ask("shadow", asked(by, reason)))

    def weight(
        self, percent: float, *, by: str | None = None, reason: str = "", force: bool = False, unrehearsed: bool = False
    ) -> Adopted:
        """Gives JetStream this share of the ordering keys, 0 to 100 per cent, and returns when that is in force.

        Raises:
            ChangeRefused: ``gate``: the gate says no to more weight, for ``context["reasons"]``, unless ``force``; ``not_rehearsed``: 100 per
                cent before a rehearsed rollback has passed, unless ``unrehearsed``; ``unmapped``, ``side_down``, ``wrong_phase``: as they say.
            InvalidConfig: ``percent`` is not such a number.
        """
        return read_adopted(self._ask("weight", asked(by, reason, percent=percent, force=force, unrehearsed=unrehearsed)))

    def rollback(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """Gives everything back to RabbitMQ at once; what JetStream holds is delivered still. See `shadow`."""
        return read_adopted(self._ask("rollback", asked(by, reason)))

    def detach(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """Lets go of RabbitMQ for good. Refused (``not_drained``, ``wrong_phase``) until JetStream owns all and RabbitMQ's queues are
        empty; see `shadow`.
        """
        return read_adopted(self._ask("detach", asked(by, reason)))

    def rehearse(self, *, stay_ms: int = STAY_MS, by: str | None = None, reason: str = "") -> Rehearsal:
        """Rolls back and goes up to the same weight again, measured; returns when that is over. ``passed`` and ``problems`` say what came of it;
        100 per cent is refused until one has passed.

        ``stay_ms``, whole seconds, is how long RabbitMQ keeps everything. A caller that is interrupted does not leave it half done.

        Raises:
            ChangeRefused: ``wrong_phase``: there is nothing to roll back.
        """
        rehearsal = there(read_rehearsal(self._ask("rehearse", asked(by, reason, stay_ms=stay_ms))))
        while rehearsal.running:
            time.sleep(EVERY)
            rehearsal = there(self.rehearsal())
        return rehearsal

    def rehearsal(self) -> Rehearsal | None:
        """The last rehearsal, also one that goes on; ``None`` when there was none."""
        return read_rehearsal(self._ask("rehearsal"))

    def backfill(
        self,
        queues: str | Sequence[str] = (),
        *,
        dry_run: bool = False,
        by: str | None = None,
        reason: str = "",
        progress: Callable[[BackfillReport], None] | None = None,
    ) -> BackfillReport:
        """Makes copies on JetStream of what lay in RabbitMQ's queues before ``shadow`` began, so that RabbitMQ may be lost with its disk;
        returns when every queue was gone through. ``left`` says how many messages have no copy, ``queues`` why.

        ``queues`` are patterns of names, ``*`` for any text; none: all. With ``dry_run`` it only tells what it would do. ``progress`` gets
        the report now and then. A caller that is interrupted does not end it: it goes on in the sidecar, and `backfill_report` tells how
        far it is. Safe to repeat: what has a copy gets no second one.

        Raises:
            ChangeRefused: ``wrong_phase``, ``side_down``: as they say.
            InvalidConfig: no queue has such a name.
        """
        if progress is not None:
            function("progress", progress)
        report = there(read_backfill(self._ask("backfill", backfill_asked(queues, dry_run, by, reason))))
        while report.running:
            told(progress, report)
            time.sleep(EVERY)
            report = there(self.backfill_report())
        return report

    def backfill_report(self) -> BackfillReport | None:
        """How far the last backfill is; ``None`` when there was none."""
        return read_backfill(self._ask("backfill_report"))

    def drain(
        self, *, timeout_ms: int = DRAIN_TIMEOUT_MS, progress: Callable[[Drain], None] | None = None
    ) -> Drain:
        """Waits until the side that lost its keys holds nothing any more, or the time is over; ``drained`` says which, ``queues`` what is left
        and why one does not drain. It changes nothing: consumers drain. ``timeout_ms=0`` only looks.

        At 100 per cent it is RabbitMQ that drains, at 0 NATS; in between it is what is older than the last change of weight.

        Raises:
            ChangeRefused: ``side_down``: a broker does not say what it holds.
        """
        number("timeout_ms", timeout_ms)
        if progress is not None:
            function("progress", progress)
        over = time.monotonic() + timeout_ms / 1_000
        while True:
            drain = read_drain(self._ask("drain"))
            told(progress, drain)
            left = over - time.monotonic()
            if drain.drained or left <= 0:
                return drain
            time.sleep(min(DRAIN_EVERY, left))

    def log(self, last: int = 50) -> list[LogEntry]:
        """Who asked for what and what became of it, the last entries (1 to 1 000), newest first. They are kept over restarts.

        Raises:
            ChangeRefused: ``side_down``: NATS does not answer.
        """
        return read_log(self._ask("log", as_json(last=last)))

    def stop(self, budget_ms: int = STOP_BUDGET_MS) -> None:
        """Stops it, as `nats_bridge.AmqpListener.stop`; the next one takes the cutover up where it stands."""
        if self._native is not None:
            self._native.stop(budget_ms)

    def wait(self) -> None:
        """Waits until it was stopped, as `nats_bridge.AmqpListener.wait`."""
        self._control().listener.wait()

    def __enter__(self) -> str:
        return self.start().url

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
