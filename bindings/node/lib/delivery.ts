import { ackSoon, handOver } from "./acks.js";
import { asked } from "./errors.js";
import { native, type NativePage } from "./native.js";
import { inspected, refuseUnknown } from "./options.js";

/** @internal */
export const REASONS = [
  "handler_error",
  "timeout",
  "schema",
  "decrypt",
  "no_handler",
  "expired",
  "max_deliver",
  "rejected",
  "too_large",
  "crash_loop",
] as const;

/** Why a message was given up: the value of the header `Dead-Letter-Reason`. */
export type Reason = (typeof REASONS)[number];

/** What became of a delivery: done, will be delivered again, or given up and kept. */
export type Settled =
  | { readonly outcome: "acked" }
  | { readonly outcome: "retried"; readonly afterMs: number }
  | { readonly outcome: "dead_lettered"; readonly stream: string; readonly sequence: number };

const ACKED: Settled = Object.freeze({ outcome: "acked" });

/** The name that a header of a dead letter had on the original message; `undefined` for one that the dead letter added. */
export function originalName(header: string): string | undefined {
  return native.originalName(header) ?? undefined;
}

/** A message as it was received. */
export class Received {
  /** @internal */
  protected readonly page: NativePage;
  /** @internal */
  protected readonly at: number;
  #payload: Buffer | undefined;

  /** @internal */
  constructor(page: NativePage, at: number) {
    this.page = page;
    this.at = at;
  }

  /** @internal Without the payload, which may be large, or nobody's business. */
  [inspected](): string {
    const id = this.id === undefined ? "" : `, id: ${this.id}`;
    return `${this.constructor.name} { ${this.subject}, sequence: ${this.sequence}, attempt: ${this.attempt}${id}, ${this.payload.length} bytes }`;
  }

  /** The subject it was published to. */
  get subject(): string {
    return this.page.subject(this.at);
  }

  /** The payload; decrypted, if the consumer does that. */
  get payload(): Buffer {
    this.#payload ??= this.page.payload(this.at);
    return this.#payload;
  }

  /** The key that the payload was decrypted with; `undefined` when it was not encrypted, or the consumer does not decrypt. */
  get keyId(): string | undefined {
    return this.page.keyId(this.at) ?? undefined;
  }

  /** The id that it was published with. */
  get id(): string | undefined {
    return this.page.id(this.at) ?? undefined;
  }

  /** All headers, `Nats-Msg-Id` included. */
  get headers(): Record<string, string[]> {
    return this.page.headers(this.at);
  }

  /** The first value of a header; names are compared exactly. */
  header(name: string): string | undefined {
    return this.page.header(this.at, name) ?? undefined;
  }

  /** Which attempt at this message it is, from 1: what a consumer that was drained had fetched and given to no handler does not count. */
  get attempt(): number {
    return this.page.attempt(this.at);
  }

  /** Its sequence in the stream. */
  get sequence(): number {
    return this.page.sequence(this.at);
  }

  /**
   * Under which lease of the single active consumer it came: higher with each instance that becomes the active one; `undefined`
   * without that option. Store it with the effect and refuse a lower one there: an instance that was cut off may still be handling a
   * message when another has taken over.
   */
  get fencingNumber(): number | undefined {
    return this.page.fencingNumber(this.at) ?? undefined;
  }

  /** When the stream stored it. */
  get storedAt(): Date {
    return new Date(this.page.storedAtMs(this.at));
  }

  /** How many messages the consumer had still to deliver after this one. */
  get pending(): number {
    return this.page.pending(this.at);
  }
}

/**
 * A message to be settled exactly once: `ack`, `retry` or `deadLetter`. A second settle rejects with `already_settled`.
 *
 * While it is held, the server is told so, up to the consumer's `maxRunMs`. Collected without having been settled, it counts
 * as failed and follows the retry policy.
 */
export class Delivery extends Received {
  #taken = false;

  /**
   * Says that the message is done.
   *
   * Resolves when the ack is on its way: the acks of one turn of the event loop go together. One that is lost with the process or
   * the connection means that the message comes again. With `confirmed` it resolves when the server has it, and the message does not
   * come again.
   *
   * Rejects with `already_settled`, `closed` (the message comes again), or, with `confirmed`, `timeout` (no answer within
   * 5 s; the server may have it).
   */
  async ack(options?: { readonly confirmed?: boolean }): Promise<Settled> {
    if (options !== undefined) {
      refuseUnknown(options, { confirmed: "boolean" });
    }
    if (options?.confirmed === true || this.#taken) {
      await this.#settle(() => this.page.ackConfirmed(this.at));
      return ACKED;
    }
    this.#taken = true;
    const waits = ackSoon(this.page, this.at);
    if (waits !== undefined) {
      await waits;
    }
    return ACKED;
  }

  /**
   * Says that handling failed: it comes again after the pause that the policy computes, or after `delayMs`. When the policy
   * has no attempt left it becomes a dead letter with reason `handler_error`; what it resolves to says which it was.
   *
   * `why` is a text, or what was thrown: the name of an `Error` groups failures of one kind.
   *
   * Rejects with `already_settled` or `closed` (the message comes again).
   */
  async retry(why: unknown = "", options: { readonly delayMs?: number } = {}): Promise<Settled> {
    refuseUnknown(options, { delayMs: "whole" });
    return this.#settle(() => this.page.retry(this.at, ...failure(why), options.delayMs));
  }

  /**
   * Gives the message up at once: it is stored in the dead-letter stream, then the original is ended. `why` is as in `retry`.
   *
   * Rejects with `already_settled`, or when the dead-letter stream does not take it: then the message is kept, the consumer
   * pauses and goes on trying, and there is nothing to do about this delivery.
   */
  async deadLetter(why: unknown = "", options: { readonly reason?: Reason } = {}): Promise<Settled> {
    refuseUnknown(options, { reason: true });
    const { reason = "rejected" } = options;
    return this.#settle(() => this.page.deadLetter(this.at, reason, ...failure(why)));
  }

  /** Whether it was settled. */
  get settled(): boolean {
    return this.#taken;
  }

  // The addon refuses what was settled, also by an ack that waits to be handed over.
  #settle<T>(settle: () => Promise<T>): Promise<T> {
    handOver();
    return asked(() => {
      const settled = settle();
      this.#taken = true;
      return settled;
    });
  }
}

/** The class and the text of what failed. */
export function failure(why: unknown): [kind: string, detail: string] {
  return why instanceof Error ? [why.name, why.message] : ["error", String(why)];
}
