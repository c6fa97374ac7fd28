import { asked } from "./errors.js";
import { native, type NativeHealthCheck } from "./native.js";
import { camel } from "./options.js";

/** A connection as it is now. */
export interface Stats {
  /** Whether a server is connected. */
  readonly connected: boolean;
  /** How often a connection was made, the first one included. */
  readonly connects: number;
  /** How often it was lost. */
  readonly disconnects: number;
  /** Whether it was closed for good. */
  readonly closed: boolean;
  /** How many messages are published and not confirmed. */
  readonly outstanding: number;
  /** The publisher's circuit breaker; always `closed` when the option `breaker` was not given. */
  readonly breaker: "closed" | "open" | "half_open";
  /** The version of the server, such as `2.15.1`. */
  readonly serverVersion: string;
  /** JetStream's API level when the connection was made. */
  readonly apiLevel: number;
}

/** How far a consumer is. */
export interface Lag {
  /** Its stream. */
  readonly stream: string;
  /** Its name. */
  readonly consumer: string;
  /** Messages that it has still to deliver. */
  readonly pending: number;
  /** Messages that are delivered and not settled. */
  readonly ackPending: number;
  /** Messages that are being delivered again. */
  readonly redelivered: number;
  /** Messages by which `pending` grows in a second, over the last looks; above 0 it falls behind. `null` until there were two. */
  readonly pendingPerSecond: number | null;
}

/** How far a mirror is. */
export interface MirrorLag {
  /** The mirror. */
  readonly stream: string;
  /** Messages of its origin that it does not have yet. */
  readonly lag: number;
  /** Milliseconds since it heard of its origin last. */
  readonly silentMs: number | null;
}

/** What a health check found. */
export interface Health {
  /** Whether there is no problem. */
  readonly ready: boolean;
  /** What is wrong, one sentence each. */
  readonly problems: readonly string[];
  /** The server that is connected. */
  readonly serverVersion: string;
  /** How far each required consumer is. */
  readonly consumers: readonly Lag[];
  /** How far each required stream that is a mirror lags behind. */
  readonly mirrors: readonly MirrorLag[];
}

/** Looks at what a service needs. Made by `bridge.healthCheck`; keep it, as it remembers how the lag develops. */
export class HealthCheck {
  readonly #native: NativeHealthCheck;

  /** @internal */
  constructor(made: NativeHealthCheck) {
    this.#native = made;
  }

  /** Looks now. What is wrong is in the answer; asking itself does not fail. */
  async look(): Promise<Health> {
    return camel(await asked(() => this.#native.look())) as Health;
  }
}

/** All that this process counts, in Prometheus' text format; empty before the first connection. */
export function metrics(): string {
  return native.renderMetrics();
}
