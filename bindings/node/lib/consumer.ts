import { setImmediate } from "node:timers/promises";

import { aborted, refuseAborted, type Abortable } from "./abort.js";
import { handOver } from "./acks.js";
import { Delivery } from "./delivery.js";
import { asked, atOnce, BridgeError } from "./errors.js";
import { handle, refuseNoWork, tellKey, type Handler, type RunOptions } from "./handling.js";
import { native, type NativeConsumer, type NativePage } from "./native.js";
import { inspected, refuseUnknown } from "./options.js";

// After so many deliveries that were there already, timers and sockets get a turn.
const TURN = 32;

// How long leaving a loop may take.
const LEAVE_BUDGET_MS = 5_000;

/**
 * `waiting`: another instance is the single active consumer. `paused`: a message that was given up cannot be stored as a dead letter; nothing
 * new comes until it can.
 */
export type ConsumerState = "running" | "waiting" | "paused" | "draining" | "stopped" | "failed" | "unknown";

/**
 * The deliveries of one durable consumer: an async iterator that ends when the consumer was drained.
 *
 * Leaving a `for await` loop early (`break`, `return`, `throw`) drains it: the loop ends when the server has back what was fetched and not
 * handed out, so that another process gets it at once, or after 5 s. Deliveries that are not settled are not waited for: they can still be.
 * The end of an `await using` block waits for them as well, as `drain` does.
 */
export class Consumer implements AsyncIterable<Delivery>, AsyncDisposable {
  readonly #native: NativeConsumer;
  #turn = 0;
  // Takes what is there already, until it is full.
  #page: NativePage | undefined;
  // The end of a wait that was aborted.
  #ending: Promise<void> | undefined;

  readonly #of: string;

  /** @internal */
  constructor(made: NativeConsumer, stream: string, name: string) {
    this.#native = made;
    this.#of = `${stream}/${name}`;
  }

  /** @internal */
  [inspected](): string {
    return `Consumer { ${this.#of}, ${this.state}, held: ${this.held} }`;
  }

  /**
   * Waits for the next delivery; resolves to `undefined` when none came within `timeoutMs`, or when the consumer was
   * drained. While it waits, the process keeps running. Aborted, it loses no delivery.
   *
   * Rejects with `not_found` (the stream or consumer was deleted), `closed` or `aborted`.
   */
  async next(options: { readonly timeoutMs?: number } & Abortable = {}): Promise<Delivery | undefined> {
    refuseUnknown(options, { timeoutMs: "whole", signal: "signal" });
    if (options.timeoutMs !== undefined && options.timeoutMs < 0) {
      const why = `it is at least 0, not ${options.timeoutMs}`;
      throw new BridgeError(`config: field=timeoutMs why=${why}`, { code: "config", context: { field: "timeoutMs", why } });
    }
    refuseAborted(options.signal);
    return this.#atOnce() ?? this.#wait(options);
  }

  // The next delivery, if it is there already; not when timers and sockets have their turn.
  #atOnce(): Delivery | undefined {
    const page = this.#page;
    if (page === undefined || this.#ending !== undefined) {
      return undefined;
    }
    this.#turn += 1;
    if (this.#turn % TURN === 0) {
      return undefined;
    }
    const at = atOnce(() => this.#native.take(page));
    return at < 0 ? undefined : new Delivery(page, at);
  }

  async #wait({ timeoutMs, signal }: { readonly timeoutMs?: number } & Abortable): Promise<Delivery | undefined> {
    if (this.#turn % TURN === 0) {
      await setImmediate();
      const delivery = this.#atOnce();
      if (delivery !== undefined) {
        return delivery;
      }
    }
    // Let go of before anything is waited for, so that what is in it can be collected.
    this.#page = undefined;
    handOver();
    await this.#ending;
    this.#turn += 1;
    const page = await (signal === undefined
      ? asked(() => this.#native.next(timeoutMs, undefined))
      : this.#unlessAborted(signal, timeoutMs));
    if (page === null) {
      return undefined;
    }
    this.#page = page;
    return new Delivery(page, 0);
  }

  async #unlessAborted(signal: AbortSignal, timeoutMs: number | undefined): Promise<NativePage | null> {
    const stop = new native.Stop();
    const onAbort = () => stop.stop();
    signal.addEventListener("abort", onAbort, { once: true });
    const wait = asked(() => this.#native.next(timeoutMs, stop));
    const ending = wait.then(
      (made) => {
        if (signal.aborted && made !== null) {
          made.giveBack(0);
        }
      },
      () => {},
    );
    this.#ending = ending;
    ending.finally(() => {
      // A wait that began later has its own end.
      if (this.#ending === ending) {
        this.#ending = undefined;
      }
    });
    try {
      const made = await wait;
      if (signal.aborted) {
        throw aborted(signal, "no");
      }
      return made;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /**
   * Runs `handler` over the deliveries until the consumer was drained, by `drain` or by `signal`.
   *
   * A message is acked when `handler` has ended, and follows the retry policy when it throws or rejects; a `GiveUp` makes it a dead
   * letter at once. At most `concurrency` messages are handled at a time. With `key`, messages of one key are handled one after
   * the other in the order of the stream, and one that failed is tried again before those behind it.
   *
   * Rejects with `config` (`concurrency` is out of range, or something else takes this consumer's deliveries), `not_found` (the
   * stream or consumer was deleted) or `closed`.
   */
  async run(handler: Handler, options: RunOptions = {}): Promise<void> {
    refuseUnknown(options, { concurrency: "whole", key: true, signal: "signal" });
    const { concurrency = 1, key, signal } = options;
    refuseNoWork("handler", handler);
    if (key !== undefined) {
      refuseNoWork("key", key);
    }
    refuseAborted(signal);
    await this.#ending;
    const jobs = await asked(() => this.#native.jobs(concurrency, key !== undefined));
    const drain = () => this.#native.beginToDrain();
    signal?.addEventListener("abort", drain, { once: true });
    const running = new Set<Promise<void>>();
    try {
      for (let turn = 1; ; turn++) {
        const job = await asked(() => jobs.next());
        if (job === null) {
          break;
        }
        if (job.wantsKey && key !== undefined) {
          tellKey(job, key);
        } else {
          const work = handle(job, handler).finally(() => running.delete(work));
          running.add(work);
        }
        if (turn % TURN === 0) {
          await setImmediate();
        }
      }
    } finally {
      signal?.removeEventListener("abort", drain);
      drain();
      await Promise.all(running);
    }
  }

  /** Iterates over the deliveries. */
  [Symbol.asyncIterator](): AsyncIterator<Delivery, undefined> {
    return {
      next: async () => {
        const value = this.#atOnce() ?? (await this.#wait({}));
        return value === undefined ? { done: true, value } : { done: false, value };
      },
      return: async () => {
        await this.#leave();
        return { done: true, value: undefined };
      },
    };
  }

  /**
   * Stops pulling, gives back what was not handed out, and waits until the rest is settled.
   *
   * Rejects with `timeout` when after `budgetMs` something is still not settled; it can still be.
   */
  async drain(options: { readonly budgetMs?: number } = {}): Promise<void> {
    refuseUnknown(options, { budgetMs: "whole" });
    const { budgetMs = 5_000 } = options;
    handOver();
    await asked(() => this.#native.drain(budgetMs));
  }

  /** How it is. */
  get state(): ConsumerState {
    return this.#native.state.state;
  }

  /** Why it is `paused` or `failed`. */
  get trouble(): string | undefined {
    return this.#native.state.why;
  }

  /** How many deliveries are here and not settled, waiting ones included. */
  get held(): number {
    handOver();
    return this.#native.held;
  }

  /** Drains it at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.drain();
  }

  async #leave(): Promise<void> {
    handOver();
    try {
      await asked(() => this.#native.leave(LEAVE_BUDGET_MS));
    } catch (error) {
      // The server does not answer or is away: it delivers again by itself, after `ackWaitMs`.
      if (!(error instanceof BridgeError)) {
        throw error;
      }
    }
  }
}
