import { check, flat, pushAll, type Bridge, type Headers, type Payload } from "./bridge.js";
import { asked, type ErrorCode, type Landed } from "./errors.js";
import { native, type NativeOutbox } from "./native.js";
import { camel, inspected, refuseUnknown, snake, type Names } from "./options.js";

/** How much an outbox may hold, and how it sends. */
export interface OutboxOptions {
  /** The most entries, waiting and refused together; default 100 000. */
  readonly maxEntries?: number;
  /** The most bytes of those; default 256 MiB. */
  readonly maxBytes?: number;
  /** How many messages are under way at once, of as many subjects; 1 to 32 768; default 256. */
  readonly maxInFlight?: number;
  /** The pause after the first failure of a message that may pass; default 200. */
  readonly firstPauseMs?: number;
  /** The longest pause; default 15 000. */
  readonly maxPauseMs?: number;
  /** For how long "no stream takes the subject" is taken for something that passes; default 60 000. */
  readonly noStreamWaitMs?: number;
  /** A word that generated message ids start with; letters, digits, `-`; default none. */
  readonly region?: string;
}

const OUTBOX_OPTIONS: Names<OutboxOptions> = {
  maxEntries: "whole",
  maxBytes: "whole",
  maxInFlight: "whole",
  firstPauseMs: "whole",
  maxPauseMs: "whole",
  noStreamWaitMs: "whole",
  region: "string",
};

/** What goes with a message that is put; it always has an id. */
export interface PutOptions {
  /** What the stream recognises duplicates by; left out, a fresh one is made. */
  readonly id?: string;
  /** Headers by name; an array for a name that comes more than once. */
  readonly headers?: Headers;
  /** The schema that the payload has to fit. */
  readonly schema?: string;
}

/** A message that is on disk. */
export interface Queued {
  /** Its number in the outbox; numbers rise. */
  readonly number: number;
  /** The id that it will be published with, also when it was generated. */
  readonly id: string;
}

/** What an outbox holds. */
export interface OutboxStatus {
  /** Entries that wait to be published or confirmed. */
  readonly waiting: number;
  /** Entries that were refused. */
  readonly refused: number;
  /** Bytes of both. */
  readonly bytes: number;
  /** How long ago the oldest that waits was put. */
  readonly oldestMs: number | null;
}

/** A message that was refused for good, and stays until it is retried or discarded. */
export interface Refused {
  /** Its number in the outbox. */
  readonly number: number;
  /** The subject that it was to be published to. */
  readonly subject: string;
  /** The payload. */
  readonly payload: Buffer;
  /** Names and values of the headers, in their order. */
  readonly headers: readonly (readonly [string, string])[];
  /** The id. */
  readonly id: string;
  /** When it was put. */
  readonly putAt: Date;
  /** When it was refused. */
  readonly refusedAt: Date;
  /** The `BridgeError.code`, such as `too_large`. */
  readonly reason: ErrorCode;
  /** The error's text. */
  readonly why: string;
  /** Whether an earlier attempt may have been stored nevertheless. */
  readonly landed: Landed;
}

// As it crosses.
interface Crossed extends Omit<Refused, "payload" | "putAt" | "refusedAt"> {
  readonly payload: string;
  readonly putAtMs: number;
  readonly refusedAtMs: number;
}

/**
 * Opens an outbox in this file, which is made if it does not exist. NATS is not needed for it.
 *
 * Rejects with `config` (an option is wrong), `in_use` (another process has the file open, or this one has already), `corrupt` (it is
 * damaged, or is not an outbox; it is left as it is) or `disk` (it cannot be read or written, or its directory is not there).
 */
export async function openOutbox(path: string, options: OutboxOptions = {}): Promise<Outbox> {
  refuseUnknown(options, OUTBOX_OPTIONS);
  return new Outbox(await asked(() => native.openOutbox(snake(options, { path }))));
}

/**
 * A bounded queue of messages on disk, in front of JetStream. Made by `openOutbox`.
 *
 * Messages are published in the order of their subject with the id that they were given here, and are removed once JetStream has
 * confirmed them. What may pass is tried again for ever; what the server refuses for good is kept, and listed by `refused`.
 */
export class Outbox {
  readonly #native: NativeOutbox;

  /** @internal */
  constructor(made: NativeOutbox) {
    this.#native = made;
  }

  /** @internal */
  [inspected](): string {
    const { waiting, refused, bytes } = this.status();
    return `Outbox { waiting: ${waiting}, refused: ${refused}, bytes: ${bytes} }`;
  }

  /** Publishes what waits, and what is put from now on, over this connection. Rejects with `conflict` (it was started before) or `closed`. */
  async start(bridge: Bridge): Promise<void> {
    await asked(() => this.#native.start(bridge.native));
  }

  /**
   * Takes one message; resolves when it is on disk.
   *
   * Rejects with `invalid_message`, `outbox_full`, `disk`, `corrupt` or `closed`; then nothing was accepted.
   */
  async put(subject: string, payload: Payload, options: PutOptions = {}): Promise<Queued> {
    refuseUnknown(options, { id: true, headers: true, schema: true });
    const { id, headers, schema } = options;
    check(subject, payload, id, schema);
    return asked(() => this.#native.put(subject, payload, id, flat(headers), schema));
  }

  /** Takes several messages in their order, all of them or none. Rejects as `put`. */
  async putMany(messages: Iterable<PutOptions & { readonly subject: string; readonly payload: Payload }>): Promise<Queued[]> {
    const all: unknown[] = [];
    pushAll(messages, all);
    return asked(() => this.#native.putMany(all));
  }

  /** What it holds at present. */
  status(): OutboxStatus {
    return camel(this.#native.status()) as OutboxStatus;
  }

  /** At most `limit` (100) of those that were refused, the oldest first, from number `first` on. */
  async refused(options: { readonly first?: number; readonly limit?: number } = {}): Promise<Refused[]> {
    refuseUnknown(options, { first: "whole", limit: "whole" });
    const { first = 0, limit = 100 } = options;
    const found = camel(await this.#ask("refused", { first, limit })) as Crossed[];
    return found.map(({ payload, putAtMs, refusedAtMs, ...rest }) => ({
      ...rest,
      payload: Buffer.from(payload, "base64"),
      putAt: new Date(putAtMs),
      refusedAt: new Date(refusedAtMs),
    }));
  }

  /** Lets one that was refused wait again, behind all others of its subject; resolves to its new number. Rejects with `not_found`. */
  async retry(number: number): Promise<number> {
    return Number(await this.#ask("retry", { number }));
  }

  /** Gives up one that was refused: it is in the file no longer. Rejects with `not_found`. */
  async discard(number: number): Promise<void> {
    await this.#ask("discard", { number });
  }

  /** Waits until nothing waits; what was refused does not count. Rejects with `timeout`. */
  async drain({ budgetMs = 5_000 }: { readonly budgetMs?: number } = {}): Promise<void> {
    await this.#ask("drain", { budgetMs });
  }

  /**
   * Takes nothing more, waits at most `budgetMs` until nothing waits, and closes the file. Closing twice is fine.
   *
   * Rejects with `timeout` when something waits still; it is in the file, and goes when that is opened and started again.
   */
  async close({ budgetMs = 5_000 }: { readonly budgetMs?: number } = {}): Promise<void> {
    await this.#ask("close", { budgetMs });
  }

  async #ask(verb: string, given: object): Promise<string> {
    return asked(() => this.#native.ask(verb, snake(given)));
  }

  /** Closes it at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
