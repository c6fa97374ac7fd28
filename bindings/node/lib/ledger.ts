import { asked } from "./errors.js";
import type { NativeLedger, NativeLedgerEntry } from "./native.js";

/** `first`: nobody has done it. `done`: it was done before. `elsewhere`: another worker has begun it; come back later. */
export type LedgerState = "first" | "done" | "elsewhere";

/** An id that was begun. One that is `first` is ended by `done` or `undo`; else its lease has to run out. */
export class LedgerEntry {
  readonly #native: NativeLedgerEntry;
  /** Whether it is this worker's. */
  readonly state: LedgerState;

  /** @internal */
  constructor(made: NativeLedgerEntry) {
    this.#native = made;
    this.state = made.state;
  }

  /**
   * Says that it is done: whoever begins it again is told so. Rejects with `conflict` (the lease was over and another worker has
   * begun it) or `config` (it is not this worker's, or was ended before).
   */
  async done(): Promise<void> {
    await asked(() => this.#native.done());
  }

  /** Says that it was not done: whoever comes next begins at once. Rejects as `done`. */
  async undo(): Promise<void> {
    await asked(() => this.#native.undo());
  }
}

/** A key-value bucket with one entry for each id that was begun or done. Made by `bridge.ledger`. */
export class Ledger {
  readonly #native: NativeLedger;

  /** @internal */
  constructor(made: NativeLedger) {
    this.#native = made;
  }

  /**
   * Begins to handle the message with this id, unless that was done or another worker is at it. Rejects with `invalid_message` (the
   * id is empty) or `unreachable` (nothing is known then).
   */
  async begin(id: string): Promise<LedgerEntry> {
    return new LedgerEntry(await asked(() => this.#native.begin(id)));
  }
}
