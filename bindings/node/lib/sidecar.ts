import { refuseAborted, unlessAborted, type Abortable } from "./abort.js";
import { serverList } from "./bridge.js";
import type { Adopted, ChangeOptions, ChangeRecord, CutoverStatus, Verdict } from "./cutover.js";
import { asked } from "./errors.js";
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
 * (or `nats-bridge`) at a time serves a NATS account: a second one rejects with `conflict`, and `context.holder` names the first. So an
 * application of several processes has one `nats-bridge sidecar` beside them instead.
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

  async #change(verb: string, { by = "", reason = "", ...unknown }: ChangeOptions, more: object = {}): Promise<Adopted> {
    refuseUnknown(unknown, {});
    return (await this.#ask(verb, { by, reason, ...more })) as Adopted;
  }

  async #ask(verb: string, given: object = {}): Promise<unknown> {
    return camel(await asked(() => this.#native.ask(verb, snake(given))));
  }
}
