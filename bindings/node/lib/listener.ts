import { refuseAborted, unlessAborted, type Abortable } from "./abort.js";
import { serverList } from "./bridge.js";
import { asked } from "./errors.js";
import { native, type NativeAmqpListener, type NativeAmqpListenerOptions } from "./native.js";
import {
  AMQP_LISTENER_OPTIONS,
  inspected,
  kindOf,
  refuseUnknown,
  refuseUnknownToConnect,
  type AmqpListenerOptions,
} from "./options.js";

/** `failed`: another gateway has taken the NATS account over. */
export type ListenerState = "running" | "draining" | "stopped" | "failed";

/** A host and a port. */
export interface Address {
  readonly host: string;
  readonly port: number;
}

// A value is not shown: it is to be a password.
function refuseNoPasswords(users: Readonly<Record<string, unknown>>): void {
  for (const [name, password] of Object.entries(users)) {
    if (typeof password !== "string") {
      throw new TypeError(`option 'users.${name}': a password is a string, not ${kindOf(password)}`);
    }
  }
}

/**
 * An AMQP 0-9-1 listener over JetStream in this process: what `nats-bridge serve` is, without a program of its own. Clients
 * for RabbitMQ connect to it as to a broker. One listener (or `nats-bridge serve`) at a time serves a NATS account.
 *
 * It runs on threads of its own and never waits for the event loop. A listener alone does not keep the process running;
 * `wait` does, and so does a client's connection in this process.
 */
export class AmqpListener implements AsyncDisposable {
  readonly #native: NativeAmqpListener;

  /** @internal */
  protected constructor(made: NativeAmqpListener) {
    this.#native = made;
  }

  /**
   * Starts one; once it resolves, clients can connect.
   *
   * Rejects with `config` (an option is wrong; `context.field` names it), `conflict` (the address is taken, or another gateway
   * serves this NATS account), `aborted`, or as `connect` does.
   */
  static async start({ signal, ...options }: AmqpListenerOptions & Abortable = {}): Promise<AmqpListener> {
    refuseUnknown(options, AMQP_LISTENER_OPTIONS);
    refuseUnknownToConnect(options.connect ?? {});
    const { nats = "nats://127.0.0.1:4222", users, ...rest } = options;
    refuseNoPasswords(users ?? {});
    const given: NativeAmqpListenerOptions = users === undefined ? rest : { ...rest, users: Object.entries(users).flat() };
    refuseAborted(signal);
    const starting = asked(() => native.startAmqpListener(serverList(nats), given));
    return new AmqpListener(await unlessAborted(starting, signal, "no", (late) => void asked(() => late.stop(0)).catch(() => {})));
  }

  /** @internal The URL has a password. */
  [inspected](): string {
    const { host, port } = this.address;
    return `${this.constructor.name} { ${this.state}, ${host}:${port}, connections: ${this.connections} }`;
  }

  /** The URL for clients on this machine: the first user, with the password, on the first virtual host. */
  get url(): string {
    return this.#native.url;
  }

  /** Where AMQP clients connect to. */
  get address(): Address {
    return this.#native.address;
  }

  /** Where AMQPS clients connect to, if `listenTls` was given. */
  get tlsAddress(): Address | undefined {
    return this.#native.tlsAddress ?? undefined;
  }

  /** How many clients are connected. */
  get connections(): number {
    return this.#native.connections;
  }

  /** How it is. */
  get state(): ListenerState {
    return this.#native.state.state;
  }

  /** Why it `failed`. */
  get trouble(): string | undefined {
    return this.#native.state.why;
  }

  /**
   * Takes no more clients, answers what was published, and closes the connections of clients with 320 `CONNECTION_FORCED`;
   * those that have not ended after `budgetMs` are cut. Stopping twice is fine.
   */
  async stop({ budgetMs = 5_000 }: { readonly budgetMs?: number } = {}): Promise<void> {
    await asked(() => this.#native.stop(budgetMs));
  }

  /**
   * Resolves when it was stopped; while it waits, the process keeps running.
   *
   * Rejects with `closed` when it ended by itself, because another gateway has taken the NATS account over.
   */
  async wait(): Promise<void> {
    await asked(() => this.#native.wait());
  }

  /** Stops it at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}
