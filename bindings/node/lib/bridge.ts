import { Consumer } from "./consumer.js";
import { asked } from "./errors.js";
import { native, type NativeBridge } from "./native.js";
import {
  CONNECT_OPTIONS,
  CONSUME_OPTIONS,
  CONSUMER_OPTIONS,
  PUBLISH_OPTIONS,
  refuseUnknown,
  RETRY_POLICY,
  spec,
  STREAM_OPTIONS,
  type ConnectOptions,
  type ConsumeOptions,
  type ConsumerOptions,
  type StreamOptions,
} from "./options.js";

/** Bytes, or a string that is sent as UTF-8. */
export type Payload = Uint8Array | string;

/** Headers by name; an array for a name that comes more than once. Names that start with `Nats-` are the server's. */
export type Headers = Readonly<Record<string, string | readonly string[]>>;

/** What a message carries besides its subject and payload. */
export interface MessageOptions {
  /**
   * What the stream recognises duplicates by, inside its duplicate window (default 120 s). Left out, a fresh one is made;
   * `false` sends none.
   */
  readonly id?: string | false;
  /** Headers by name. */
  readonly headers?: Headers;
}

/** Where a published message is stored. */
export interface Published {
  /** The stream that holds it. */
  readonly stream: string;
  /** Its sequence in that stream; for a duplicate, the sequence of the first one. */
  readonly sequence: number;
  /** Whether the id was already seen inside the stream's duplicate window. */
  readonly duplicate: boolean;
  /** The id it carries, also when it was generated. */
  readonly id?: string;
}

/**
 * Connects to NATS and checks that JetStream answers.
 *
 * `servers` is one URL, several separated by commas, or an array. Once connected, a lost connection is made again for
 * ever. An open connection alone does not keep the process running; a call that waits does.
 *
 * Rejects with `config` (a URL, certificate or credential cannot be read), `unreachable`, `denied` or `unsupported`
 * (JetStream is not enabled for this account, or the server is older than 2.10.26).
 */
export async function connect(
  servers: string | readonly string[] = "nats://127.0.0.1:4222",
  options: ConnectOptions = {},
): Promise<Bridge> {
  refuseUnknown(options, CONNECT_OPTIONS);
  refuseUnknown(options.publish ?? {}, PUBLISH_OPTIONS);
  const list = typeof servers === "string" ? servers.split(",") : servers;
  const made = await asked(() => native.connect(list.map((server) => server.trim()), options));
  return new Bridge(made);
}

/** A connection to NATS with JetStream. Made by `connect`. */
export class Bridge {
  readonly #native: NativeBridge;

  /** @internal */
  constructor(made: NativeBridge) {
    this.#native = made;
  }

  /**
   * Publishes one message; resolves when JetStream has stored it.
   *
   * What has no answer is sent again with the same id, within the bounds of the option `publish` of `connect`.
   *
   * Rejects with `invalid_message` or `too_large` (it cannot be sent as it is; nothing landed), `rejected` (JetStream
   * refused it), `denied`, `unreachable` (no stream listens on the subject), `timeout` (it may have landed: resend with the
   * same id) or `closed`; `landed` says whether it may be stored.
   */
  async publish(subject: string, payload: Payload, options: MessageOptions = {}): Promise<Published> {
    refuseUnknown(options, { id: true, headers: true });
    const { id, headers } = options;
    if (typeof subject !== "string") {
      throw new TypeError(`subject: it is a string, not ${typeof subject}`);
    }
    if (id !== undefined && id !== false && typeof id !== "string") {
      throw new TypeError(`id: it is a string or false, not ${typeof id}`);
    }
    return asked(() => this.#native.publish(subject, bytes(payload), id, flat(headers)));
  }

  /**
   * Starts consuming `stream` as the durable consumer `name`, which all instances of a service share. The consumer and,
   * unless another is named, the dead-letter stream `{stream}_DLQ` are made if they do not exist.
   *
   * Rejects with `config` (an option is out of range), `not_found` (there is no such stream, or the dead-letter stream that
   * was named) or `conflict` (the consumer exists and differs in what cannot be changed).
   */
  async consume(stream: string, name: string, options: ConsumeOptions = {}): Promise<Consumer> {
    refuseUnknown(options, CONSUME_OPTIONS);
    refuseUnknown(options.retry ?? {}, RETRY_POLICY);
    return new Consumer(await asked(() => this.#native.consume(stream, name, options)));
  }

  /**
   * Makes a stream as it should be: creates it, changes it in place, or leaves it.
   *
   * Rejects with `config` (it is unbounded and does not say so, or an option is wrong) or `conflict` (it exists and cannot
   * be changed in place, or its subjects belong to another stream).
   */
  async ensureStream(name: string, options: StreamOptions = {}): Promise<void> {
    refuseUnknown(options, STREAM_OPTIONS);
    await asked(() => this.#native.ensure("stream", spec(options, { name })));
  }

  /**
   * Makes a durable consumer as it should be. `consume` does so too; this is for set-up beforehand.
   *
   * Rejects with `config` (an option is wrong), `not_found` (there is no such stream) or `conflict`.
   */
  async ensureConsumer(stream: string, name: string, options: ConsumerOptions = {}): Promise<void> {
    refuseUnknown(options, CONSUMER_OPTIONS);
    await asked(() => this.#native.ensure("consumer", spec(options, { stream, name })));
  }

  /** The version of the server that is connected now, such as `2.15.1`. */
  get serverVersion(): string {
    return this.#native.serverVersion;
  }

  /**
   * Waits at most `budgetMs` for what is not confirmed yet, then closes the connection. Closing twice is fine.
   *
   * Rejects with `timeout` when something was still not confirmed; it may have landed.
   */
  async close({ budgetMs = 5_000 }: { readonly budgetMs?: number } = {}): Promise<void> {
    await asked(() => this.#native.close(budgetMs));
  }

  /** Closes it at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function bytes(payload: Payload): Uint8Array {
  if (typeof payload === "string") {
    return Buffer.from(payload, "utf8");
  }
  if (payload instanceof Uint8Array) {
    return payload;
  }
  throw new TypeError(`payload: it is a Uint8Array, a Buffer or a string, not ${typeof payload}`);
}

// Names and values in turn, as the addon takes them.
function flat(headers: Headers = {}): string[] {
  const pairs: string[] = [];
  for (const [name, values] of Object.entries(headers)) {
    for (const value of Array.isArray(values) ? (values as readonly unknown[]) : [values]) {
      if (typeof value !== "string") {
        throw new TypeError(`headers: the value of '${name}' is a string or an array of strings, not ${typeof value}`);
      }
      pairs.push(name, value);
    }
  }
  return pairs;
}
