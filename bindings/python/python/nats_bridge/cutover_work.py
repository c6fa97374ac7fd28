"""Work on the way of a cutover: rehearsals, backfills, and what is left to drain."""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BackfillProgress",
    "BackfillQueue",
    "BackfillRefused",
    "BackfillReport",
    "Drain",
    "DrainingQueue",
    "Rehearsal",
    "RehearsedQueue",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsedQueue:
    """A queue in a rehearsal."""

    vhost: str
    """Its vhost."""
    name: str
    """Its name."""
    paused_ms: tuple[int, int]
    """How long deliveries waited for older ones, on the way down and on the way up."""
    held: int
    """The most deliveries that waited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What the rehearsal of a rollback measured, and its verdict."""

    running: bool
    """Whether it goes on."""
    passed: bool
    """Whether a rollback may be relied on."""
    problems: list[str]
    """Why it has not passed."""
    void: str | None = None
    """Why it counts no more."""
    by: str
    """Who asked for it."""
    reason: str
    """Why."""
    at: str
    """When it began, RFC 3339."""
    weight_percent: float
    """The weight that it rolled back from, and went up to again."""
    epoch: int
    """The epoch that it ended with."""
    down_ms: int
    """Until everything was RabbitMQ's."""
    up_ms: int
    """Until the weight was in force again."""
    settled_ms: tuple[int, int]
    """Until everything older had come out of every queue, after the way down and the way up."""
    confirmed: int
    """Publishes that were confirmed meanwhile."""
    failed: int
    """Publishes that were refused or lost meanwhile."""
    faults: int
    """Messages that JetStream corrupted, dropped, reordered or duplicated meanwhile."""
    differences: tuple[int, int]
    """Messages that differed in the comparison: before, and meanwhile."""
    compared: tuple[int, int]
    """Messages that were compared: before, and meanwhile."""
    holds_timed_out: int
    """Waits that were ended because their time was over."""
    connections: tuple[int, int]
    """Connections: before and after."""
    queues: list[RehearsedQueue]
    """Those that had to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillProgress:
    """How far a backfill is, in short."""

    running: bool
    """Whether it goes on."""
    done: bool
    """Whether every queue was gone through."""
    at: str
    """When it began, RFC 3339."""
    queues: int
    """Queues."""
    queues_done: int
    """Of them, those where everything has a copy."""
    queues_refused: int
    """Of them, those that were left alone."""
    held: int
    """Messages that were ready."""
    read: int
    """Of them, those that were read."""
    copied: int
    """Of them, those of which a copy was made."""
    had: int
    """Of them, those that had one."""
    error: str | None = None
    """Why it stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillRefused:
    """Why a backfill left a queue alone."""

    code: str
    """A stable name, such as ``in_hand``."""
    reason: str
    """Why."""
    fix: str
    """What to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillQueue:
    """One queue of a backfill."""

    vhost: str
    """Its vhost."""
    name: str
    """Its name."""
    state: Literal["waiting", "reading", "done", "refused", "stopped"]
    """``refused``: it was left alone. ``stopped``: in the middle; what was read is back in its place."""
    held: int
    """Messages that were ready in it when it was looked at."""
    read: int
    """Of them, those that were read."""
    copied: int
    """Of them, those of which a copy was made."""
    had: int
    """Of them, those that had one."""
    not_carried: int
    """Of them, those that JetStream cannot carry."""
    paused_ms: int
    """How long its consumers got nothing from RabbitMQ."""
    refused: BackfillRefused | None = None
    """Why it was left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillReport:
    """How far a backfill is."""

    dry_run: bool
    """It was only looked at."""
    running: bool
    """Whether it goes on."""
    done: bool
    """Whether every queue was gone through."""
    by: str
    """Who asked for it."""
    reason: str
    """Why."""
    at: str
    """When it began, RFC 3339."""
    unmapped: int
    """Exchanges, queues and bindings that JetStream does not have: of what they hold there can be no copies."""
    queues: list[BackfillQueue]
    """By queue."""
    error: str | None = None
    """Why it stopped; asked for again, it goes on."""

    @property
    def left(self) -> int:
        """Messages without a copy after all."""
        return sum(max(0, queue.held - queue.copied - queue.had) for queue in self.queues)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainingQueue:
    """A queue that is not drained."""

    vhost: str
    """Its vhost."""
    name: str
    """Its name."""
    ready: int
    """Messages that are ready."""
    in_flight: int
    """Messages that consumers have in hand."""
    per_s: float
    """Messages that go in a second, over the last seconds."""
    left_s: int | None = None
    """Seconds until it is empty, at that rate."""
    stuck: str | None = None
    """Why it does not drain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """What the side that lost its keys still holds."""

    side: Literal["rabbit", "nats"]
    """That side."""
    drained: bool
    """Whether nothing is left."""
    left: int
    """Messages that are ready or in hand."""
    left_s: int | None = None
    """Seconds until nothing is left, at the rate of the last seconds; ``None`` when something does not drain."""
    queues: list[DrainingQueue]
    """Those that are not drained."""
