import { setImmediate } from "node:timers/promises";

import { Delivery } from "./delivery.js";
import { asked, BridgeError } from "./errors.js";
import type { NativeConsumer } from "./native.js";

// After so many deliveries that were there already, timers and sockets get a turn.
const TURN = 32;

/** `paused`: a message that was given up cannot be stored as a dead letter; nothing new comes until it can. */
export type ConsumerState = "running" | "paused" | "draining" | "stopped" | "failed" | "unknown";

/**
 * The deliveries of one durable consumer: an async iterator that ends when the consumer was drained.
 *
 * Leaving a `for await` loop early drains it without waiting for deliveries that are not settled; the end of an `await
 * using` block waits.
 */
export class Consumer implements AsyncIterable<Delivery>, AsyncDisposable {
  readonly #native: NativeConsumer;
  #turn = 0;

  /** @internal */
  constructor(made: NativeConsumer) {
    this.#native = made;
  }

  /**
   * Waits for the next delivery; resolves to `undefined` when none came within `timeoutMs`, or when the consumer was
   * drained. While it waits, the process keeps running.
   *
   * Rejects with `not_found` (the stream or consumer was deleted) or `closed`.
   */
  async next({ timeoutMs }: { readonly timeoutMs?: number } = {}): Promise<Delivery | undefined> {
    this.#turn += 1;
    if (this.#turn % TURN === 0) {
      await setImmediate();
    }
    const made = await asked(() => this.#native.next(timeoutMs));
    return made === null ? undefined : new Delivery(made);
  }

  /** Iterates over the deliveries. */
  [Symbol.asyncIterator](): AsyncIterator<Delivery, undefined> {
    return {
      next: async () => {
        const value = await this.next();
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
  async drain({ budgetMs = 5_000 }: { readonly budgetMs?: number } = {}): Promise<void> {
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
    return this.#native.held;
  }

  /** Drains it at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.drain();
  }

  async #leave(): Promise<void> {
    try {
      await this.drain({ budgetMs: 0 });
    } catch (error) {
      // What is not settled yet can still be.
      if (!(error instanceof BridgeError && error.code === "timeout")) {
        throw error;
      }
    }
  }
}
