"""Where a cutover from RabbitMQ to JetStream stands, and what may become of it."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .cutover_work import BackfillProgress, Rehearsal

__all__ = [
    "Adopted",
    "BrokerStatus",
    "ChangeRecord",
    "CutoverStatus",
    "CutoverWarning",
    "Faults",
    "GateReason",
    "LogEntry",
    "ParityCounts",
    "ParitySample",
    "Phase",
    "QueueParity",
    "QueueStatus",
    "SidecarStatus",
    "StandbyStatus",
    "Unmapped",
    "Verdict",
]

Phase: TypeAlias = Literal["observe", "shadow", "canary", "cutover", "native"]
"""``observe``: RabbitMQ does everything. ``shadow``: copies go to JetStream and are compared. ``canary``: JetStream owns some ordering
keys. ``cutover``: it owns all. ``native``: RabbitMQ is let go of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatus:
    """One broker, as the sidecar sees it; counts are since it started."""

    connected: bool
    """Whether it answers."""
    url: str
    """Its address, without user and password."""
    error: str | None = None
    """Why it does not answer."""
    published: int
    """Messages it took as their owner."""
    delivered: int
    """Messages of it that were delivered, redeliveries included."""
    unsettled: int
    """Deliveries of it that are not settled."""
    rejected: int
    """Deliveries of it that were dead-lettered or dropped."""
    failed: int
    """Publishes that it refused or lost."""
    blocked: int
    """Connections to which it says that it takes no publishes for now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """One queue on both sides."""

    vhost: str
    """Its vhost."""
    name: str
    """Its name."""
    rabbit_ready: int | None
    """Messages ready in RabbitMQ; ``None`` when it did not say."""
    nats_ready: int | None
    """Messages ready in JetStream; ``None`` when it did not say."""
    rabbit_unsettled: int
    """Deliveries from RabbitMQ that are not settled."""
    nats_unsettled: int
    """Deliveries from JetStream that are not settled."""
    held: int
    """Deliveries that wait until older ones of the other broker are settled."""
    fence: Literal["none", "waiting", "sent", "passed", "timed_out"]
    """How far the mark is that ends such a wait after a change of weight."""
    consumers: int
    """Consumers that came through the sidecar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCounts:
    """How many copies ended in which class; every copy ends in exactly one."""

    matched: int
    """Copy and delivery are equal."""
    mismatched_payload: int
    """The payloads differ."""
    mismatched_properties: int
    """The payloads are equal, the properties differ."""
    mismatched_routing: int
    """Exchange or routing key differ."""
    missing: int
    """RabbitMQ delivered it, and no copy came."""
    extra: int
    """A copy that RabbitMQ never delivered."""
    late: int
    """Compared, but late; these are among the others as well."""
    unverified: int
    """Could not be compared."""
    pending: int
    """Not ended yet."""

    @property
    def differences(self) -> int:
        """How many differ, or are on one side only."""
        mismatched = self.mismatched_payload + self.mismatched_properties + self.mismatched_routing
        return mismatched + self.missing + self.extra


@dataclass(frozen=True, slots=True, kw_only=True)
class ParitySample:
    """One message that is not a match."""

    class_: str
    """Its class, such as ``missing``."""
    id: str
    """The ``bridge-id`` that the sidecar gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueParity:
    """What was compared for one queue."""

    vhost: str
    """Its vhost."""
    queue: str
    """Its name."""
    counts: ParityCounts
    """How many copies ended in which class."""
    unverified_by: dict[str, int]
    """What is unverified, by reason."""
    samples: list[ParitySample]
    """The last few messages that are not a match."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmapped:
    """Something that JetStream refused to take over."""

    vhost: str
    """Its vhost."""
    kind: str
    """What it is: ``queue``, ``exchange``, ``binding``."""
    name: str
    """Its name."""
    reason: str
    """Why it was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutoverWarning:
    """Something that a human should look at."""

    code: str
    """A stable name, such as ``hold_timed_out``."""
    count: int
    """How often since the sidecar started."""
    text: str
    """What happened last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What the sidecar found wrong in messages that JetStream owns."""

    corrupted: int
    """Delivered with another payload, other properties or another routing key."""
    dropped: int
    """Confirmed, and neither delivered nor in its queue."""
    reordered: int
    """Delivered before an older one of its publisher and routing key."""
    duplicated: int
    """Delivered twice, and not said to be a redelivery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandbyStatus:
    """How it stands with the copies on RabbitMQ of what JetStream owns."""

    copies: int
    """Copies that RabbitMQ holds."""
    lag: int
    """Of them, those whose message is settled and which are not removed yet."""
    no_copy: int
    """Messages without a copy that JetStream may still hold; at most 100 000 are known."""
    no_copy_total: int
    """Messages that were confirmed without a copy since the sidecar started."""
    no_copy_by: dict[str, int]
    """Why, and how many."""
    away: bool
    """Whether RabbitMQ takes no copies now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One entry of the log: what was asked for, and what became of it."""

    number: int
    """Its number; grows."""
    at: str
    """When, RFC 3339."""
    what: str
    """What was asked for, such as ``weight 5``, ``rollback`` or ``backfill``."""
    outcome: Literal["begun", "done", "unchanged", "refused", "failed"]
    """What became of it."""
    by: str
    """Who asked."""
    from_: str
    """From where: an address, or empty for the sidecar itself and the program that it is in."""
    reason: str
    """Why."""
    host: str
    """The machine of the sidecar that wrote it."""
    phase: Phase
    """The phase afterwards."""
    weight_percent: float
    """The weight afterwards."""
    epoch: int
    """The epoch afterwards."""
    forced: bool
    """Whether it was done against a no."""
    automatic: bool
    """Whether the sidecar did it by itself."""
    detail: str
    """What else there is to say: why it was refused, figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarStatus:
    """One of several sidecars of a NATS account."""

    host: str
    """Its machine."""
    pid: int
    """Its process."""
    since: str
    """Since when it is there, RFC 3339."""
    leads: bool
    """Whether it leads: it has the cutover, and the others pass their clients on to it."""
    epoch: int
    """The epoch that it knows to be in force."""
    connections: int
    """AMQP connections that are open; of the one that leads, those that are passed on to it included."""
    amqp: str
    """Where the others reach it for AMQP."""
    http: str
    """Where they reach it for status and control."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutoverStatus:
    """Where the cutover stands."""

    phase: Phase
    """The phase in force."""
    weight_percent: float
    """The share of ordering keys that JetStream owns."""
    epoch: int
    """Grows by one with every change."""
    by: str
    """Who made the last change."""
    reason: str
    """Why."""
    at: str
    """When, RFC 3339."""
    draining: bool
    """Whether the sidecar is shutting down."""
    rabbit: BrokerStatus
    """RabbitMQ."""
    nats: BrokerStatus
    """NATS JetStream."""
    connections: int
    """AMQP connections that are open."""
    queues: list[QueueStatus]
    """Every queue that the sidecar knows."""
    parity: list[QueueParity]
    """What ``shadow`` compared."""
    unmapped: list[Unmapped]
    """What JetStream refused to take over; while there is any, weight is refused."""
    warnings: list[CutoverWarning]
    """What a human should look at."""
    standby_lag: int
    """Copies that nothing has been compared with yet."""
    faults: Faults
    """What is wrong in messages that JetStream owns, since it last owned nothing."""
    standby: StandbyStatus | None = None
    """The copies on RabbitMQ of what JetStream owns; ``None`` where none are kept."""
    standby_rabbit: StandbyStatus | None = None
    """The copies on JetStream of what RabbitMQ owns; ``None`` where none are kept."""
    rolled_back: str | None = None
    """Why the sidecar has rolled back by itself, if that was the last thing that happened."""
    losing: Literal["rabbit", "nats"] | None = None
    """The side that the last change of weight took keys from, until what is older has come out of its queues."""
    rehearsal: Rehearsal | None = None
    """The last rehearsal of a rollback."""
    backfill: BackfillProgress | None = None
    """How far the last backfill is."""
    sidecars: list[SidecarStatus] = field(default_factory=list[SidecarStatus])
    """The sidecars that share the account and live, the one that leads first; none where this one does not share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReason:
    """One reason of a verdict."""

    code: str
    """A stable name, such as ``mismatch``."""
    severity: Literal["block", "wait", "note"]
    """``block``: no, and waiting does not help. ``wait``: not yet. ``note``: good to know."""
    text: str
    """What is the matter."""
    fix: str
    """What to do."""
    numbers: dict[str, float]
    """The numbers that it was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """May the cutover go on?"""

    may_go_on: bool
    """Yes or no."""
    phase: Phase
    """The phase in force."""
    weight_percent: float
    """The weight in force."""
    next: str | None
    """What comes next; ``None`` after the last step."""
    summary: str
    """The answer in a sentence."""
    reasons: list[GateReason]
    """Why; those that block first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A change that is in force."""

    changed: bool
    """False when the state was already the one asked for."""
    phase: Phase
    """The phase in force."""
    weight_percent: float
    """The weight in force."""
    epoch: int
    """The epoch in force."""
    by: str
    """Who made the change in force."""
    reason: str
    """Why."""
    at: str
    """When, RFC 3339."""
    took_ms: int
    """From the request to the change being in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRecord:
    """One change of phase or weight."""

    epoch: int
    """The epoch that it brought."""
    at: str
    """When, RFC 3339."""
    phase: Phase
    """The phase since."""
    weight_percent: float
    """The weight since."""
    by: str
    """Who made it."""
    reason: str
    """Why."""
    forced: bool
    """Whether it was made against the gate's no."""
    automatic: bool
    """Whether the sidecar made it by itself."""
