import { setTimeout as sleep } from "node:timers/promises";

import { aborted, refuseAborted, unlessAborted, type Abortable } from "./abort.js";
import { serverList } from "./bridge.js";
import type {
  Adopted,
  BackfillOptions,
  BackfillReport,
  ChangeOptions,
  ChangeRecord,
  CutoverStatus,
  Drain,
  DrainOptions,
  LogEntry,
  Rehearsal,
  RehearseOptions,
  Verdict,
} from "./cutover.js";
import { asked, BridgeError } from "./errors.js";
import { AmqpListener } from "./listener.js";
import { native, type NativeSidecar } from "./native.js";
import {
  camel,
  refuseUnknown,
  refuseUnknownToConnect,
  SIDECAR_OPTIONS,
  snake,
  type SidecarOptions,
} from "./options.js";

/**
 * A sidecar between this application's RabbitMQ client and two brokers: what `nats-bridge sidecar` is, without a program of its own.
 * Clients connect to its `url`. RabbitMQ does everything until `shadow` and `weight` say otherwise, and gets everything back by
 * `rollback`. Its listener is an `AmqpListener`, with `url`, `address`, `connections`, `state`, `stop` and `wait`.
 *
 * The user of `rabbit` is the sidecar's own and counts and publishes fences; clients log in with the users of RabbitMQ. One sidecar
 * (or `nats-bridge`) at a time serves a NATS account: a second one rejects with `conflict`, and `context.holder` names the first. An
 * application of several processes gives each of them `shared: true`, or has `nats-bridge sidecar` beside them instead.
 */
export class Sidecar extends AmqpListener {
  readonly #native: NativeSidecar;

  private constructor(made: NativeSidecar) {
    super(made.listener());
    this.#native = made;
  }

  /**
   * Starts one; once it resolves, clients can connect. It takes the cutover up where it stands.
   *
   * Rejects with `config` (an option is wrong; `context.field` names it), `conflict` (the address is taken, or another gateway serves
   * this NATS account), `denied` (RabbitMQ refuses the user of `rabbit`), `aborted`, or as `connect` does. A RabbitMQ that does not
   * answer is no error: it is waited for.
   */
  static override async start({ signal, ...options }: SidecarOptions & Abortable): Promise<Sidecar> {
    const { nats = "nats://127.0.0.1:4222", connect = {}, ...rest } = options;
    refuseUnknown(options, SIDECAR_OPTIONS);
    refuseUnknownToConnect(connect);
    refuseAborted(signal);
    const starting = asked(() => native.startSidecar(serverList(nats), connect, snake(rest)));
    const late = (made: NativeSidecar) => void asked(() => made.listener().stop(0)).catch(() => {});
    return new Sidecar(await unlessAborted(starting, signal, "no", late));
  }

  /** Where the cutover stands: phase, weight, both brokers, every queue, and what was compared (`parity`). */
  async status(): Promise<CutoverStatus> {
    return (await this.#ask("status")) as CutoverStatus;
  }

  /** May the cutover go on? */
  async gate(): Promise<Verdict> {
    return (await this.#ask("gate")) as Verdict;
  }

  /** The last changes, newest first. */
  async changes(): Promise<ChangeRecord[]> {
    return (await this.#ask("changes")) as ChangeRecord[];
  }

  /** RabbitMQ does everything, and nothing is compared; see `shadow`. */
  async observe(options: ChangeOptions = {}): Promise<Adopted> {
    return this.#change("observe", options);
  }

  /**
   * RabbitMQ does everything; copies go to JetStream and are compared with what RabbitMQ delivers.
   *
   * A change that is refused rejects and leaves the state as it was: `code` says why, `context.fix` what to do; `conflict` when
   * somebody else has changed it at the same time.
   */
  async shadow(options: ChangeOptions = {}): Promise<Adopted> {
    return this.#change("shadow", options);
  }

  /**
   * Gives JetStream this share of the ordering keys, 0 to 100 per cent, and resolves when that is in force.
   *
   * Rejects with `gate` (the gate says no to more weight, for `context.reasons`, unless `force`), `not_rehearsed` (100 per cent
   * before a rehearsed rollback has passed, unless `unrehearsed`), `unmapped`, `side_down`,
   * `wrong_phase`, `conflict`; `config` when `percent` is not such a number.
   */
  async weight(
    percent: number,
    { force = false, unrehearsed = false, ...options }: ChangeOptions & { readonly force?: boolean; readonly unrehearsed?: boolean } = {},
  ): Promise<Adopted> {
    return this.#change("weight", options, { percent, force, unrehearsed });
  }

  /** Gives everything back to RabbitMQ at once; what JetStream holds is delivered still. See `shadow`. */
  async rollback(options: ChangeOptions = {}): Promise<Adopted> {
    return this.#change("rollback", options);
  }

  /**
   * Lets go of RabbitMQ for good. Rejects with `not_drained` or `wrong_phase` until JetStream owns all and RabbitMQ's queues are
   * empty; see `shadow`.
   */
  async detach(options: ChangeOptions = {}): Promise<Adopted> {
    return this.#change("detach", options);
  }

  /**
   * Rolls back and goes up to the same weight again, measured; resolves when that is over. `passed` and `problems` say what came of it;
   * 100 per cent is refused until one has passed. Aborted, it is carried through.
   *
   * Rejects with `wrong_phase` when there is nothing to roll back, `aborted`, and `config` when `stayMs` is wrong.
   */
  async rehearse({ stayMs = 5_000, by = "", reason = "", signal, ...unknown }: RehearseOptions & Abortable = {}): Promise<Rehearsal> {
    refuseUnknown(unknown, {});
    refuseAborted(signal);
    let rehearsal = there((await this.#ask("rehearse", { by, reason, stayMs })) as Rehearsal | null);
    while (rehearsal.running) {
      await pause(EVERY_MS, signal);
      rehearsal = there(await this.#rehearsal());
    }
    return rehearsal;
  }

  /** The last rehearsal, also one that goes on; `undefined` when there was none. */
  async rehearsal(): Promise<Rehearsal | undefined> {
    return (await this.#rehearsal()) ?? undefined;
  }

  /**
   * Makes copies on JetStream of what lay in RabbitMQ's queues before `shadow` began, so that RabbitMQ may be lost with its disk;
   * resolves when every queue was gone through. `left` says how many messages have no copy, `queues` why. Safe to repeat: what has a copy
   * gets no second one. Aborted, it goes on in the sidecar, and `backfillReport` tells how far it is.
   *
   * Rejects with `wrong_phase`, `side_down`, `aborted`, and `config` when no queue has such a name.
   */
  async backfill({
    queues = [],
    dryRun = false,
    by = "",
    reason = "",
    progress,
    signal,
    ...unknown
  }: BackfillOptions & Abortable = {}): Promise<BackfillReport> {
    refuseUnknown(unknown, {});
    refuseAborted(signal);
    let report = there(reported(await this.#ask("backfill", { queues, dryRun, by, reason })));
    while (report.running) {
      progress?.(report);
      await pause(EVERY_MS, signal);
      report = there(await this.backfillReport());
    }
    return report;
  }

  /** How far the last backfill is; `undefined` when there was none. */
  async backfillReport(): Promise<BackfillReport | undefined> {
    return reported(await this.#ask("backfill_report")) ?? undefined;
  }

  /**
   * Waits until the side that lost its keys holds nothing any more, or the time is over; `drained` says which, `queues` what is left and
   * why one does not drain. It changes nothing: consumers drain. At 100 per cent it is RabbitMQ that drains, at 0 NATS; in
   * between it is what is older than the last change of weight.
   *
   * Rejects with `side_down` when a broker does not say what it holds, and `aborted`.
   */
  async drain({ timeoutMs = 600_000, progress, signal, ...unknown }: DrainOptions & Abortable = {}): Promise<Drain> {
    refuseUnknown(unknown, {});
    refuseAborted(signal);
    const over = performance.now() + timeoutMs;
    for (;;) {
      const drain = (await this.#ask("drain")) as Drain;
      progress?.(drain);
      const left = over - performance.now();
      if (drain.drained || left <= 0) {
        return drain;
      }
      await pause(Math.min(DRAIN_EVERY_MS, left), signal);
    }
  }

  /**
   * Who asked for what and what became of it, the last entries (1 to 1 000; default 50), newest first. They are kept over restarts.
   *
   * Rejects with `side_down` when NATS does not answer.
   */
  async log({ last = 50, ...unknown }: { readonly last?: number } = {}): Promise<LogEntry[]> {
    refuseUnknown(unknown, {});
    return (await this.#ask("log", { last })) as LogEntry[];
  }

  async #rehearsal(): Promise<Rehearsal | null> {
    return (await this.#ask("rehearsal")) as Rehearsal | null;
  }

  async #change(verb: string, { by = "", reason = "", ...unknown }: ChangeOptions, more: object = {}): Promise<Adopted> {
    refuseUnknown(unknown, {});
    return (await this.#ask(verb, { by, reason, ...more })) as Adopted;
  }

  async #ask(verb: string, given: object = {}): Promise<unknown> {
    return camel(await asked(() => this.#native.ask(verb, snake(given))));
  }
}

/** How often the sidecar is asked how far something is. */
const EVERY_MS = 200;
const DRAIN_EVERY_MS = 500;

async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  try {
    await sleep(ms, undefined, signal && { signal });
  } catch (error) {
    throw signal?.aborted === true ? aborted(signal, "no") : error;
  }
}

function there<T>(answer: T | null | undefined): T {
  if (answer === null || answer === undefined) {
    throw new BridgeError("closed: the sidecar was started anew meanwhile; try again", { code: "closed" });
  }
  return answer;
}

function reported(answer: unknown): BackfillReport | null {
  const report = answer as Omit<BackfillReport, "left"> | null;
  if (report === null) {
    return null;
  }
  const left = report.queues.reduce((sum, { held, copied, had }) => sum + Math.max(0, held - copied - had), 0);
  return { ...report, left };
}
