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
  /** The last rehearsal of a rollback, with the names of `nats-bridge status --json` in camel case. */
  readonly rehearsal?: Readonly<Record<string, unknown>>;
  /** How far the last backfill is, likewise. */
  readonly backfill?: Readonly<Record<string, unknown>>;
  /** The sidecars that share the account, likewise. */
  readonly sidecars?: readonly Readonly<Record<string, unknown>>[];
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
