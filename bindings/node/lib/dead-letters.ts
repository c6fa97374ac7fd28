import { refuseAborted, type Abortable } from "./abort.js";
import { asked } from "./errors.js";
import { native, type NativeBridge } from "./native.js";
import { camel, refuseUnknown, snake, type Names } from "./options.js";

/** What letters of one group share: the reason; consumer, reason and class of failure; the consumer. */
export type GroupBy = "reason" | "fingerprint" | "consumer";

/** Which dead letters are meant; all that is given must fit. Nothing given means all. */
export interface DeadLetterFilter {
  /** The reason, such as `handler_error`. */
  readonly reason?: string;
  /** The fingerprint. */
  readonly fingerprint?: string;
  /** The consumer that gave it up. */
  readonly consumer?: string;
  /** The stream that it was in. */
  readonly stream?: string;
  /** The first and the last sequence in the dead-letter stream, from 1. */
  readonly sequences?: readonly [first: number, last: number];
}

/** A message that was given up. */
export interface DeadLetter {
  /** Its sequence in the dead-letter stream. */
  readonly sequence: number;
  /** When it became a dead letter. */
  readonly storedAt: Date;
  /** The original payload. */
  readonly payload: Buffer;
  /** The original headers, `Nats-Msg-Id` included. */
  readonly headers: Readonly<Record<string, string[]>>;
  /** The subject that it was published to. */
  readonly subject: string;
  /** The stream that it was in. */
  readonly stream: string;
  /** Its sequence in that stream. */
  readonly streamSequence: number;
  /** The consumer that gave it up. */
  readonly consumer: string;
  /** Why it was given up. */
  readonly reason: string;
  /** What the last failure said. */
  readonly detail: string;
  /** What it shares with failures of the same consumer, reason and class. */
  readonly fingerprint: string;
  /** How often it was delivered to a handler. */
  readonly attempts: number;
  /** When it failed first, RFC 3339. */
  readonly firstFailedAt: string;
  /** When it failed last, RFC 3339. */
  readonly lastFailedAt: string;
  /** The host that gave it up. */
  readonly host: string;
  /** How often it was redriven before. */
  readonly redrives: number;
  /** The key that its payload is encrypted under; `null` when it is not encrypted. */
  readonly encryptedWith: string | null;
}

/** Dead letters that have something in common. */
export interface DeadLetterGroup {
  /** What they share. */
  readonly key: string;
  /** How many they are. */
  readonly letters: number;
  /** The bytes of their payloads. */
  readonly payloadBytes: number;
  /** The sequence of the first one. */
  readonly firstSequence: number;
  /** The sequence of the last one. */
  readonly lastSequence: number;
  /** The last one's consumer. */
  readonly consumer: string;
  /** The last one's reason. */
  readonly reason: string;
  /** The last one's detail. */
  readonly detail: string;
  /** When the last one failed last, RFC 3339. */
  readonly lastFailedAt: string;
}

/** What to redrive, and how. */
export interface RedriveOptions extends DeadLetterFilter, Abortable {
  /** Where to; default the subject that each was published to. */
  readonly to?: string;
  /** How many in a second at most; default 50. */
  readonly ratePerSecond?: number;
  /** How many at most; default all. */
  readonly limit?: number;
  /** Publishes and removes nothing, only counts; default false. */
  readonly dryRun?: boolean;
  /** Stops when more than this share is a dead letter again; default 0.2. */
  readonly maxFailedAgain?: number;
}

/** How a redrive ended. */
export interface Redriven {
  /** Stored where they were to go, and removed here; in a dry run, how many would be. */
  readonly redriven: number;
  /** Of those, how many are dead letters again already. */
  readonly failedAgain: number;
  /** Why it ended before all was redriven, such as `cancelled`; `null` when it did not. */
  readonly stopped: string | null;
  /** The last letter that was looked at. */
  readonly lastSequence: number;
}

/** What an import did. */
export interface Imported {
  /** Lines that are letters in the stream now. */
  readonly stored: number;
  /** Lines whose letter was there already. */
  readonly duplicates: number;
}

const FILTER: Names<DeadLetterFilter> = { reason: "string", fingerprint: "string", consumer: "string", stream: "string", sequences: true };
const MANY: Names<DeadLetterFilter & Abortable> = { ...FILTER, signal: "signal" };
const REDRIVE: Names<RedriveOptions> = {
  ...MANY,
  to: "string",
  ratePerSecond: "number",
  limit: "number",
  dryRun: "boolean",
  maxFailedAgain: "number",
};

/**
 * The dead letters of one stream, made by `bridge.deadLetters`. What takes long ends in order when its `signal` is aborted, and is
 * carried on by calling it again.
 */
export class DeadLetters {
  readonly #native: NativeBridge;
  /** The stream's name. */
  readonly stream: string;

  /** @internal */
  constructor(made: NativeBridge, stream: string) {
    this.#native = made;
    this.stream = stream;
  }

  /** How many letters lie in the stream. */
  async count(): Promise<number> {
    return (await this.#ask("count", {})) as number;
  }

  /** Counts what is there, put together by what it has in common; the largest group first. */
  async list(options: DeadLetterFilter & { readonly by?: GroupBy } = {}): Promise<DeadLetterGroup[]> {
    refuseUnknown(options, { ...FILTER, by: "string" });
    const { by = "reason", ...which } = options;
    return (await this.#ask("list", which, { by })) as DeadLetterGroup[];
  }

  /** The oldest letters, which stay where they are. */
  async peek(options: DeadLetterFilter & { readonly limit?: number } = {}): Promise<DeadLetter[]> {
    refuseUnknown(options, { ...FILTER, limit: "number" });
    const { limit = 10, ...which } = options;
    return ((await this.#ask("peek", which, { limit })) as Crossed[]).map(letter);
  }

  /**
   * One letter by its sequence in this stream; with the payload decrypted, if `decrypt` says where the keys are. Rejects with
   * `not_found` when there is none, `unknown_key` or `decrypt` when it cannot be decrypted.
   */
  async show(sequence: number, options: { readonly decrypt?: string } = {}): Promise<DeadLetter> {
    refuseUnknown(options, { decrypt: true });
    return letter((await this.#ask("show", {}, { sequence, decrypt: options.decrypt })) as Crossed);
  }

  /**
   * Publishes letters again and removes each once it is stored. Each goes with a fresh id. It stops by itself when too many fail
   * again. Rejects with `config` when the rate is not above 0.
   */
  async redrive(options: RedriveOptions = {}): Promise<Redriven> {
    refuseUnknown(options, REDRIVE);
    const { to, ratePerSecond, limit, dryRun, maxFailedAgain, signal, ...which } = options;
    const more = { to, rate_per_second: ratePerSecond, limit, dry_run: dryRun, max_failed_again: maxFailedAgain };
    return (await this.#ask("redrive", which, more, signal)) as Redriven;
  }

  /** Moves letters to `{stream}_PARKED`, out of the way of a redrive. Resolves to how many. */
  async park(options: DeadLetterFilter & Abortable = {}): Promise<number> {
    return this.#many("park", options);
  }

  /** Writes letters to a new file as lines of JSON, and leaves them where they are. Resolves to how many. */
  async export(file: string, options: DeadLetterFilter & Abortable = {}): Promise<number> {
    return this.#many("export", options, { file });
  }

  /** Writes letters to a new file as lines of JSON, and removes them once they are on its disk. Resolves to how many. */
  async purge(file: string, options: DeadLetterFilter & Abortable = {}): Promise<number> {
    return this.#many("purge", options, { file });
  }

  /** Stores what `export` or `purge` wrote here again. */
  async bringBack(file: string, options: Abortable = {}): Promise<Imported> {
    refuseUnknown(options, { signal: "signal" });
    return (await this.#ask("import", {}, { file }, options.signal)) as Imported;
  }

  // What works on many letters, and says how many they were.
  async #many(verb: string, options: DeadLetterFilter & Abortable, more: object = {}): Promise<number> {
    refuseUnknown(options, MANY);
    const { signal, ...which } = options;
    return (await this.#ask(verb, which, more, signal)) as number;
  }

  async #ask(verb: string, which: DeadLetterFilter, more: object = {}, signal?: AbortSignal): Promise<unknown> {
    refuseAborted(signal);
    const stop = new native.Stop();
    const onAbort = () => stop.stop();
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      const given = snake(more, { stream: this.stream, filter: which });
      return camel(await asked(() => this.#native.ask(`dead_letters.${verb}`, given, stop)));
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }
}

// A letter as it crosses.
interface Crossed extends Omit<DeadLetter, "storedAt" | "payload" | "headers"> {
  readonly storedAt: string;
  readonly payloadBase64: string;
  readonly headers: readonly (readonly [string, string])[];
}

function letter({ storedAt, payloadBase64, headers, ...rest }: Crossed): DeadLetter {
  const named: Record<string, string[]> = {};
  for (const [name, value] of headers) {
    (named[name] ??= []).push(value);
  }
  return { ...rest, storedAt: new Date(storedAt), payload: Buffer.from(payloadBase64, "base64"), headers: named };
}
