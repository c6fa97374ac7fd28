import { failure, REASONS, Received, type Reason } from "./delivery.js";
import type { NativeJob } from "./native.js";
import { kindOf, refuseUnknown } from "./options.js";

/** Does the work for one message; what it returns is awaited, and its value is of no interest. */
export type Handler = (message: Received) => unknown;

/** Which key a message has: messages of one key are handled one after the other, in the order of the stream. */
export type Key = (message: Received) => string;

/** How a handler is run. */
export interface RunOptions {
  /** How many messages are handled at a time; 1 to 1 024; default 1. */
  readonly concurrency?: number;
  /** Which key a message has; default none: messages are independent of each other. */
  readonly key?: Key;
  /** Drains the consumer: handlers that run are waited for, and `run` resolves. */
  readonly signal?: AbortSignal;
}

/** Thrown by a handler: no further attempt can help, so the message becomes a dead letter at once, for this reason. */
export class GiveUp extends Error {
  override readonly name = "GiveUp";
  /** The reason that the dead letter has. */
  readonly reason: Reason;

  constructor(why = "", options: { readonly reason?: Reason } = {}) {
    super(why);
    refuseUnknown(options, { reason: true });
    const { reason = "rejected" } = options;
    if (!REASONS.includes(reason)) {
      throw new TypeError(`reason: one of ${REASONS.join(", ")}, not ${reason}`);
    }
    this.reason = reason;
  }
}

/** Answers which key a message has; an exception makes it a message that failed. */
export function tellKey(job: NativeJob, key: Key): void {
  try {
    const told: unknown = key(new Received(job.message(), 0));
    if (typeof told !== "string") {
      throw new TypeError(`a key is a string, not ${typeof told}`);
    }
    job.key(told);
  } catch (error) {
    failed(job, error);
  }
}

/** Refuses what is no function, and a function that does nothing yet when it is called. */
export function refuseNoWork(name: "handler" | "key", given: unknown): void {
  if (typeof given !== "function") {
    throw new TypeError(`${name}: it is a function, not ${kindOf(given)}`);
  }
  const kind = kindOf(given, true);
  if (kind.endsWith("GeneratorFunction")) {
    throw new TypeError(`${name}: it is a function without 'yield', not function*: that one does nothing when it is called`);
  }
  if (name === "key" && kind === "AsyncFunction") {
    throw new TypeError("key: it is a plain function that returns a string, not an async one");
  }
}

/** Runs the handler over one message. */
export async function handle(job: NativeJob, handler: Handler): Promise<void> {
  try {
    const returned = await handler(new Received(job.message(), 0));
    if (kindOf(returned).endsWith("Generator")) {
      throw new TypeError("the handler returned a generator: its work is not done");
    }
    job.done();
  } catch (error) {
    failed(job, error);
  }
}

function failed(job: NativeJob, error: unknown): void {
  const giveUp: unknown = error instanceof GiveUp ? error.reason : undefined;
  // A subclass may have set a reason that is none: then it is a failure like others.
  job.failed(...failure(error), REASONS.find((reason) => reason === giveUp));
}
