"""What the sidecar is asked and what it answers, from and to JSON."""

import json
from collections.abc import Callable
from typing import TypeVar

from .arguments import as_json
from .cutover import (
    Adopted,
    BrokerStatus,
    ChangeRecord,
    CutoverStatus,
    CutoverWarning,
    Faults,
    GateReason,
    LogEntry,
    ParityCounts,
    ParitySample,
    QueueParity,
    QueueStatus,
    SidecarStatus,
    StandbyStatus,
    Unmapped,
    Verdict,
)
from .cutover_work import (
    BackfillProgress,
    BackfillQueue,
    BackfillRefused,
    BackfillReport,
    Drain,
    DrainingQueue,
    Rehearsal,
    RehearsedQueue,
)
from .errors import Closed

__all__ = [
    "asked",
    "read_adopted",
    "read_backfill",
    "read_changes",
    "read_drain",
    "read_log",
    "read_rehearsal",
    "read_status",
    "read_verdict",
    "there",
    "told",
]


def asked(by: str | None, reason: str, **more: object) -> str:
    """What a change says, as JSON."""
    return as_json(by="" if by is None else by, reason=reason, **more)


def read_status(answer: str) -> CutoverStatus:
    """Where the cutover stands, of what the sidecar says."""
    given = json.loads(answer)
    sides = given.pop("sides")
    parity: list[QueueParity] = []
    for queue in given.pop("parity"):
        samples = [ParitySample(class_=sample["class"], id=sample["id"]) for sample in queue.pop("samples")]
        vhost, name, unverified_by = queue.pop("vhost"), queue.pop("queue"), queue.pop("unverified_by")
        counts = ParityCounts(**queue)
        parity.append(
            QueueParity(vhost=vhost, queue=name, counts=counts, unverified_by=unverified_by, samples=samples)
        )
    standby, standby_rabbit = given.pop("standby", None), given.pop("standby_rabbit", None)
    rehearsal, backfill = given.pop("rehearsal", None), given.pop("backfill", None)
    return CutoverStatus(
        rabbit=BrokerStatus(**sides["rabbit"]),
        nats=BrokerStatus(**sides["nats"]),
        queues=[QueueStatus(**queue) for queue in given.pop("queues")],
        parity=parity,
        unmapped=[Unmapped(**unmapped) for unmapped in given.pop("unmapped")],
        warnings=[CutoverWarning(**warning) for warning in given.pop("warnings")],
        faults=Faults(**given.pop("faults")),
        standby=None if standby is None else StandbyStatus(**standby),
        standby_rabbit=None if standby_rabbit is None else StandbyStatus(**standby_rabbit),
        rehearsal=read_rehearsal(json.dumps(rehearsal)),
        backfill=None if backfill is None else BackfillProgress(**backfill),
        sidecars=[SidecarStatus(**sidecar) for sidecar in given.pop("sidecars", ())],
        **given,
    )


def read_verdict(answer: str) -> Verdict:
    """A verdict, of what the sidecar says."""
    given = json.loads(answer)
    return Verdict(reasons=[GateReason(**reason) for reason in given.pop("reasons")], **given)


def read_adopted(answer: str) -> Adopted:
    """A change, of what the sidecar says."""
    return Adopted(**json.loads(answer))


def read_rehearsal(answer: str) -> Rehearsal | None:
    """A rehearsal, of what the sidecar says; ``None`` when there was none."""
    given = json.loads(answer)
    if given is None:
        return None
    queues = [RehearsedQueue(paused_ms=tuple(queue.pop("paused_ms")), **queue) for queue in given.pop("queues")]
    twice = ("settled_ms", "differences", "compared", "connections")
    return Rehearsal(queues=queues, **{name: tuple(given.pop(name)) for name in twice}, **given)


def read_backfill(answer: str) -> BackfillReport | None:
    """How far a backfill is, of what the sidecar says; ``None`` when there was none."""
    given = json.loads(answer)
    if given is None:
        return None
    queues: list[BackfillQueue] = []
    for queue in given.pop("queues"):
        refused = queue.pop("refused", None)
        queues.append(BackfillQueue(**queue, refused=None if refused is None else BackfillRefused(**refused)))
    return BackfillReport(queues=queues, **given)


def read_drain(answer: str) -> Drain:
    """What is left, of what the sidecar says."""
    given = json.loads(answer)
    return Drain(queues=[DrainingQueue(**queue) for queue in given.pop("queues")], **given)


def read_log(answer: str) -> list[LogEntry]:
    """The log, of what the sidecar says."""
    return [LogEntry(from_=entry.pop("from"), **entry) for entry in json.loads(answer)]


T = TypeVar("T")


def there(answer: T | None) -> T:
    """What was begun."""
    if answer is None:
        raise Closed("closed: the sidecar was started anew meanwhile; try again", code="closed")
    return answer


def told(progress: Callable[[T], None] | None, report: T) -> None:
    """Tells whoever wants to know how far something is."""
    if progress is not None:
        progress(report)


def read_changes(answer: str) -> list[ChangeRecord]:
    """Changes, of what the sidecar says."""
    return [ChangeRecord(**change) for change in json.loads(answer)]
