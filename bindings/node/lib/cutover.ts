// Where a cutover from RabbitMQ to JetStream stands, and what may become of it: the answers of a sidecar.

/**
 * `observe`: RabbitMQ does everything. `shadow`: copies go to JetStream and are compared. `canary`: JetStream owns some ordering keys.
 * `cutover`: it owns all. `native`: RabbitMQ is let go of.
 */
export type Phase = "observe" | "shadow" | "canary" | "cutover" | "native";

/** One broker, as the sidecar sees it; counts are since it started. */
export interface BrokerStatus {
  /** Whether it answers. */
  readonly connected: boolean;
  /** Its address, without user and password. */
  readonly url: string;
  /** Why it does not answer. */
  readonly error?: string;
  /** Messages it took as their owner. */
  readonly published: number;
  /** Messages of it that were delivered, redeliveries included. */
  readonly delivered: number;
  /** Deliveries of it that are not settled. */
  readonly unsettled: number;
  /** Deliveries of it that were dead-lettered or dropped. */
  readonly rejected: number;
  /** Publishes that it refused or lost. */
  readonly failed: number;
  /** Connections to which it says that it takes no publishes for now. */
  readonly blocked: number;
}

/** One queue on both sides. */
export interface QueueStatus {
  readonly vhost: string;
  readonly name: string;
  /** Messages ready in RabbitMQ; `null` when it did not say. */
  readonly rabbitReady: number | null;
  /** Messages ready in JetStream; `null` when it did not say. */
  readonly natsReady: number | null;
  /** Deliveries from RabbitMQ that are not settled. */
  readonly rabbitUnsettled: number;
  /** Deliveries from JetStream that are not settled. */
  readonly natsUnsettled: number;
  /** Deliveries that wait until older ones of the other broker are settled. */
  readonly held: number;
  /** How far the mark is that ends such a wait after a change of weight. */
  readonly fence: "none" | "waiting" | "sent" | "passed" | "timed_out";
  /** Consumers that came through the sidecar. */
  readonly consumers: number;
}

/** What was compared for one queue; every copy ends in exactly one class. */
export interface QueueParity {
  readonly vhost: string;
  readonly queue: string;
  /** Copy and delivery are equal. */
  readonly matched: number;
  /** The payloads differ. */
  readonly mismatchedPayload: number;
  /** The payloads are equal, the properties differ. */
  readonly mismatchedProperties: number;
  /** Exchange or routing key differ. */
  readonly mismatchedRouting: number;
  /** RabbitMQ delivered it, and no copy came. */
  readonly missing: number;
  /** A copy that RabbitMQ never delivered. */
  readonly extra: number;
  /** Compared, but late; these are among the others as well. */
  readonly late: number;
  /** Could not be compared. */
  readonly unverified: number;
  /** Not ended yet. */
  readonly pending: number;
  /** What is unverified, by reason. */
  readonly unverifiedBy: Readonly<Record<string, number>>;
  /** The last few messages that are not a match: class, and the `bridge-id` that the sidecar gave it. */
  readonly samples: readonly { readonly class: string; readonly id: string }[];
}

/** Something that JetStream refused to take over. */
export interface Unmapped {
  readonly vhost: string;
  /** What it is: `queue`, `exchange`, `binding`. */
  readonly kind: string;
  readonly name: string;
  /** Why it was refused. */
  readonly reason: string;
}

/** Something that a human should look at. */
export interface CutoverWarning {
  /** A stable name, such as `hold_timed_out`. */
  readonly code: string;
  /** How often since the sidecar started. */
  readonly count: number;
  /** What happened last. */
  readonly text: string;
}

/** What the sidecar found wrong in messages that JetStream owns. */
export interface Faults {
  /** Delivered with another payload, other properties or another routing key. */
  readonly corrupted: number;
  /** Confirmed, and neither delivered nor in its queue. */
  readonly dropped: number;
  /** Delivered before an older one of its publisher and routing key. */
  readonly reordered: number;
  /** Delivered twice, and not said to be a redelivery. */
  readonly duplicated: number;
}

/** How it stands with the copies on RabbitMQ of what JetStream owns. */
export interface StandbyStatus {
  /** Copies that RabbitMQ holds. */
  readonly copies: number;
  /** Of them, those whose message is settled and which are not removed yet. */
  readonly lag: number;
  /** Messages without a copy that JetStream may still hold; at most 100 000 are known. */
  readonly noCopy: number;
  /** Messages that were confirmed without a copy since the sidecar started. */
  readonly noCopyTotal: number;
  /** Why, and how many. */
  readonly noCopyBy: Readonly<Record<string, number>>;
  /** Whether RabbitMQ takes no copies now. */
  readonly away: boolean;
}

/** Where the cutover stands. */
export interface CutoverStatus {
  readonly phase: Phase;
  /** The share of ordering keys that JetStream owns. */
  readonly weightPercent: number;
  /** Grows by one with every change. */
  readonly epoch: number;
  /** Who made the last change. */
  readonly by: string;
  /** Why. */
  readonly reason: string;
  /** When, RFC 3339. */
  readonly at: string;
  /** Whether the sidecar is shutting down. */
  readonly draining: boolean;
  /** Both brokers. */
  readonly sides: { readonly rabbit: BrokerStatus; readonly nats: BrokerStatus };
  /** AMQP connections that are open. */
  readonly connections: number;
  /** Every queue that the sidecar knows. */
  readonly queues: readonly QueueStatus[];
  /** What `shadow` compared. */
  readonly parity: readonly QueueParity[];
  /** What JetStream refused to take over; while there is any, weight is refused. */
  readonly unmapped: readonly Unmapped[];
  /** What a human should look at. */
  readonly warnings: readonly CutoverWarning[];
  /** Copies that nothing has been compared with yet. */
  readonly standbyLag: number;
  /** What is wrong in messages that JetStream owns, since it last owned nothing. */
  readonly faults: Faults;
  /** The copies on RabbitMQ of what JetStream owns; none where none are kept. */
  readonly standby?: StandbyStatus;
  /** The copies on JetStream of what RabbitMQ owns; none where none are kept. */
  readonly standbyRabbit?: StandbyStatus;
  /** Why the sidecar has rolled back by itself, if that was the last thing that happened. */
  readonly rolledBack?: string;
  /** The side that the last change of weight took keys from, until what is older has come out of its queues. */
  readonly losing?: "rabbit" | "nats";
  /** The last rehearsal of a rollback. */
  readonly rehearsal?: Rehearsal;
  /** How far the last backfill is. */
  readonly backfill?: BackfillProgress;
  /** The sidecars that share the account and live, the one that leads first; none where this one does not share it. */
  readonly sidecars?: readonly SidecarStatus[];
}

/** A queue in a rehearsal. */
export interface RehearsedQueue {
  readonly vhost: string;
  readonly name: string;
  /** How long deliveries waited for older ones, on the way down and on the way up. */
  readonly pausedMs: readonly [number, number];
  /** The most deliveries that waited. */
  readonly held: number;
}

/** What the rehearsal of a rollback measured, and its verdict. */
export interface Rehearsal {
  /** Whether it goes on. */
  readonly running: boolean;
  /** Whether a rollback may be relied on. */
  readonly passed: boolean;
  /** Why it has not passed. */
  readonly problems: readonly string[];
  /** Why it counts no more. */
  readonly void?: string;
  /** Who asked for it. */
  readonly by: string;
  readonly reason: string;
  /** When it began, RFC 3339. */
  readonly at: string;
  /** The weight that it rolled back from, and went up to again. */
  readonly weightPercent: number;
  /** The epoch that it ended with. */
  readonly epoch: number;
  /** Until everything was RabbitMQ's. */
  readonly downMs: number;
  /** Until the weight was in force again. */
  readonly upMs: number;
  /** Until everything older had come out of every queue, after the way down and the way up. */
  readonly settledMs: readonly [number, number];
  /** Publishes that were confirmed meanwhile. */
  readonly confirmed: number;
  /** Publishes that were refused or lost meanwhile. */
  readonly failed: number;
  /** Messages that JetStream corrupted, dropped, reordered or duplicated meanwhile. */
  readonly faults: number;
  /** Messages that differed in the comparison: before, and meanwhile. */
  readonly differences: readonly [number, number];
  /** Messages that were compared: before, and meanwhile. */
  readonly compared: readonly [number, number];
  /** Waits that were ended because their time was over. */
  readonly holdsTimedOut: number;
  /** Connections: before and after. */
  readonly connections: readonly [number, number];
  /** Those that had to wait. */
  readonly queues: readonly RehearsedQueue[];
}

/** How far a backfill is, in short. */
export interface BackfillProgress {
  readonly running: boolean;
  /** Whether every queue was gone through. */
  readonly done: boolean;
  /** When it began, RFC 3339. */
  readonly at: string;
  readonly queues: number;
  /** Of them, those where everything has a copy. */
  readonly queuesDone: number;
  /** Of them, those that were left alone. */
  readonly queuesRefused: number;
  /** Messages that were ready. */
  readonly held: number;
  /** Of them, those that were read. */
  readonly read: number;
  /** Of them, those of which a copy was made. */
  readonly copied: number;
  /** Of them, those that had one. */
  readonly had: number;
  /** Why it stopped. */
  readonly error?: string;
}

/** One queue of a backfill. */
export interface BackfillQueue {
  readonly vhost: string;
  readonly name: string;
  /** `refused`: it was left alone. `stopped`: in the middle; what was read is back in its place. */
  readonly state: "waiting" | "reading" | "done" | "refused" | "stopped";
  /** Messages that were ready in it when it was looked at. */
  readonly held: number;
  /** Of them, those that were read. */
  readonly read: number;
  /** Of them, those of which a copy was made. */
  readonly copied: number;
  /** Of them, those that had one. */
  readonly had: number;
  /** Of them, those that JetStream cannot carry. */
  readonly notCarried: number;
  /** How long its consumers got nothing from RabbitMQ. */
  readonly pausedMs: number;
  /** Why it was left alone: a stable name such as `in_hand`, why, and what to do. */
  readonly refused?: { readonly code: string; readonly reason: string; readonly fix: string };
}

/** How far a backfill is. */
export interface BackfillReport {
  /** It was only looked at. */
  readonly dryRun: boolean;
  readonly running: boolean;
  /** Whether every queue was gone through. */
  readonly done: boolean;
  /** Who asked for it. */
  readonly by: string;
  readonly reason: string;
  /** When it began, RFC 3339. */
  readonly at: string;
  /** Exchanges, queues and bindings that JetStream does not have: of what they hold there can be no copies. */
  readonly unmapped: number;
  /** Messages without a copy after all. */
  readonly left: number;
  readonly queues: readonly BackfillQueue[];
  /** Why it stopped; asked for again, it goes on. */
  readonly error?: string;
}

/** A queue that is not drained. */
export interface DrainingQueue {
  readonly vhost: string;
  readonly name: string;
  readonly ready: number;
  /** Messages that consumers have in hand. */
  readonly inFlight: number;
  /** Messages that go in a second, over the last seconds. */
  readonly perS: number;
  /** Seconds until it is empty, at that rate. */
  readonly leftS?: number;
  /** Why it does not drain. */
  readonly stuck?: string;
}

/** What the side that lost its keys still holds. */
export interface Drain {
  /** That side. */
  readonly side: "rabbit" | "nats";
  /** Whether nothing is left. */
  readonly drained: boolean;
  /** Messages that are ready or in hand. */
  readonly left: number;
  /** Seconds until nothing is left, at the rate of the last seconds; none when something does not drain. */
  readonly leftS?: number;
  /** Those that are not drained. */
  readonly queues: readonly DrainingQueue[];
}

/** One entry of the log: what was asked for, and what became of it. */
export interface LogEntry {
  /** Its number; grows. */
  readonly number: number;
  /** When, RFC 3339. */
  readonly at: string;
  /** What was asked for, such as `weight 5`, `rollback` or `backfill`. */
  readonly what: string;
  /** What became of it. */
  readonly outcome: "begun" | "done" | "unchanged" | "refused" | "failed";
  /** Who asked. */
  readonly by: string;
  /** From where: an address, or empty for the sidecar itself and the program that it is in. */
  readonly from: string;
  readonly reason: string;
  /** The machine of the sidecar that wrote it. */
  readonly host: string;
  /** The phase afterwards. */
  readonly phase: Phase;
  readonly weightPercent: number;
  readonly epoch: number;
  /** Whether it was done against a no. */
  readonly forced: boolean;
  /** Whether the sidecar did it by itself. */
  readonly automatic: boolean;
  /** What else there is to say: why it was refused, figures. */
  readonly detail: string;
}

/** One of several sidecars of a NATS account. */
export interface SidecarStatus {
  /** Its machine. */
  readonly host: string;
  /** Its process. */
  readonly pid: number;
  /** Since when it is there, RFC 3339. */
  readonly since: string;
  /** Whether it leads: it has the cutover, and the others pass their clients on to it. */
  readonly leads: boolean;
  /** The epoch that it knows to be in force. */
  readonly epoch: number;
  /** AMQP connections that are open; of the one that leads, those that are passed on to it included. */
  readonly connections: number;
  /** Where the others reach it for AMQP. */
  readonly amqp: string;
  /** Where they reach it for status and control. */
  readonly http: string;
}

/** One reason of a verdict. */
export interface GateReason {
  /** A stable name, such as `mismatch`. */
  readonly code: string;
  /** `block`: no, and waiting does not help. `wait`: not yet. `note`: good to know. */
  readonly severity: "block" | "wait" | "note";
  /** What is the matter. */
  readonly text: string;
  /** What to do. */
  readonly fix: string;
  /** The numbers that it was made from. */
  readonly numbers: Readonly<Record<string, number>>;
}

/** May the cutover go on? */
export interface Verdict {
  /** Yes or no. */
  readonly mayGoOn: boolean;
  readonly phase: Phase;
  readonly weightPercent: number;
  /** What comes next; `null` after the last step. */
  readonly next: string | null;
  /** The answer in a sentence. */
  readonly summary: string;
  /** Why; those that block first. */
  readonly reasons: readonly GateReason[];
}

/** A change that is in force. */
export interface Adopted {
  /** False when the state was already the one asked for. */
  readonly changed: boolean;
  readonly phase: Phase;
  readonly weightPercent: number;
  readonly epoch: number;
  readonly by: string;
  readonly reason: string;
  readonly at: string;
  /** From the request to the change being in force. */
  readonly tookMs: number;
}

/** One change of phase or weight. */
export interface ChangeRecord {
  readonly epoch: number;
  readonly at: string;
  readonly phase: Phase;
  readonly weightPercent: number;
  readonly by: string;
  readonly reason: string;
  /** Whether it was made against the gate's no. */
  readonly forced: boolean;
  /** Whether the sidecar made it by itself. */
  readonly automatic: boolean;
}

/** Who makes a change, and why; both are kept with it. */
export interface ChangeOptions {
  /** Default: this process. */
  readonly by?: string;
  readonly reason?: string;
}

/** How a rollback is rehearsed. */
export interface RehearseOptions extends ChangeOptions {
  /** How long RabbitMQ keeps everything, in whole seconds; default 5 000. */
  readonly stayMs?: number;
}

/** Of which queues copies are made. */
export interface BackfillOptions extends ChangeOptions {
  /** Patterns of queue names, `*` for any text; default all queues. */
  readonly queues?: readonly string[];
  /** Only tells what it would do. */
  readonly dryRun?: boolean;
  /** Gets the report now and then. */
  readonly progress?: (report: BackfillReport) => void;
}

/** How long to wait until a side is drained. */
export interface DrainOptions {
  /** Default 600 000; 0 only looks. */
  readonly timeoutMs?: number;
  /** Gets what is left now and then. */
  readonly progress?: (drain: Drain) => void;
}
