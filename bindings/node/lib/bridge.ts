import { refuseAborted, stopped, unlessAborted, type Abortable } from "./abort.js";
import { handOver } from "./acks.js";
import { Consumer } from "./consumer.js";
import { DeadLetters } from "./dead-letters.js";
import { asked, atOnce, BridgeError, crossed } from "./errors.js";
import { HealthCheck, type Stats } from "./health.js";
import { Ledger } from "./ledger.js";
import { plan, type Plan } from "./manifest.js";
import { native, type NativeBridge } from "./native.js";
import {
  APPLY_OPTIONS,
  BUCKET_OPTIONS,
  camel,
  CONSUME_OPTIONS,
  CONSUMER_OPTIONS,
  HEALTH_OPTIONS,
  inspected,
  kindOf,
  refuseNoString,
  refuseUnknown,
  refuseUnknownToConnect,
  RETRY_POLICY,
  snake,
  STREAM_OPTIONS,
  type ApplyOptions,
  type BucketOptions,
  type ConnectOptions,
  type ConsumeOptions,
  type ConsumerOptions,
  type HealthOptions,
  type StreamOptions,
} from "./options.js";
import { Schemas } from "./schemas.js";
import { nativeUpcast } from "./upcast.js";

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
  /** The schema that the payload has to fit: `order` for the newest version, `order/3` for that one; for connections that check. */
  readonly schema?: string;
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
  /** That it is stored; of a `BridgeError` it is `"no"` or `"unknown"`. */
  readonly landed: "yes";
}

/** A message, for a call that publishes many. */
export interface Message extends MessageOptions {
  /** The subject to publish it to. */
  readonly subject: string;
  /** The payload. */
  readonly payload: Payload;
}

/** What became of one of many messages; both have `landed`. */
export type Outcome = Published | BridgeError;

/**
 * Connects to NATS and checks that JetStream answers.
 *
 * `servers` is one URL, several separated by commas, or an array. Once connected, a lost connection is made again for
 * ever. An open connection alone does not keep the process running; a call that waits does. Aborted, no connection is left.
 *
 * Rejects with `config` (a URL, certificate or credential cannot be read), `unreachable`, `denied` or `unsupported`
 * (JetStream is not enabled for this account, or the server is older than 2.10.26) or `aborted`.
 */
export async function connect(
  servers: string | readonly string[] = "nats://127.0.0.1:4222",
  given: ConnectOptions & Abortable = {},
): Promise<Bridge> {
  refuseUnknownToConnect(given, { signal: "signal" });
  const { signal, ...options } = given;
  refuseAborted(signal);
  const connecting = asked(() => native.connect(serverList(servers), options));
  const made = await unlessAborted(connecting, signal, "no", (late) => void asked(() => late.close(0)).catch(() => {}));
  return new Bridge(made);
}

/** The URLs of `servers` one by one. */
export function serverList(servers: string | readonly string[]): string[] {
  const list: unknown = typeof servers === "string" ? servers.split(",") : servers;
  if (!Array.isArray(list) || !list.every((server) => typeof server === "string")) {
    throw new TypeError(`servers: a URL, several separated by commas, or an array of URLs, not ${kindOf(servers)}`);
  }
  return list.map((server) => server.trim());
}

/** A connection to NATS with JetStream. Made by `connect`. */
export class Bridge {
  readonly #native: NativeBridge;

  /** @internal */
  constructor(made: NativeBridge) {
    this.#native = made;
  }

  /** @internal */
  [inspected](): string {
    const { connected, closed, outstanding } = this.stats();
    const state = closed ? "closed" : connected ? "connected" : "not connected";
    return `Bridge { ${state}, server: ${this.#native.serverVersion}, outstanding: ${outstanding} }`;
  }

  /** @internal */
  get native(): NativeBridge {
    return this.#native;
  }

  /**
   * Publishes one message; resolves when JetStream has stored it.
   *
   * What has no answer is sent again with the same id, within the bounds of the option `publish` of `connect`: for 60 s in all, unless its
   * `deadlineMs` says otherwise, also while NATS is away.
   *
   * Rejects with `invalid_message` or `too_large` (it cannot be sent as it is; nothing landed), `schema` (it does not fit), `rejected` (JetStream
   * refused it), `denied`, `not_found` (no stream takes the subject: `ensureStream`, or a manifest, makes one), `unreachable` (its stream has no
   * leader), `timeout` (it may have landed: resend with the same id), `closed` or `aborted`; `landed` says whether it may be stored.
   */
  async publish(subject: string, payload: Payload, options: MessageOptions & Abortable = {}): Promise<Published> {
    refuseUnknown(options, { id: true, headers: true, schema: true, signal: "signal" });
    const { id, headers, schema, signal } = options;
    refuseAborted(signal);
    check(subject, payload, id, schema);
    return stopped((stop) => this.#native.publish(subject, payload, id, flat(headers), schema, stop), signal, "unknown");
  }

  /**
   * Publishes messages in their order; resolves to the outcome of each in the same order, once all have one.
   *
   * An outcome is where the message is stored, or the `BridgeError` that `publish` would have rejected with; both have `landed`:
   * `"yes"`, `"no"` or `"unknown"`. One that fails holds none of the others back. As many as the window takes (the option `publish`
   * of `connect`) are under way at once. All that is given is in memory at once: give what is endless in parts.
   *
   * Rejects with `aborted` (some may be stored), and with a `TypeError` when something is not a message; then nothing was sent.
   */
  async publishMany(messages: Iterable<Message>, options: Abortable = {}): Promise<Outcome[]> {
    refuseUnknown(options, { signal: "signal" });
    const { signal } = options;
    refuseAborted(signal);
    const all: unknown[] = [];
    pushAll(messages, all);
    const outcomes = await stopped((stop) => this.#native.publishMany(all, stop), signal, "unknown");
    return outcomes.map((outcome) => (typeof outcome === "string" ? crossed(outcome) : outcome));
  }

  /**
   * Starts consuming `stream` as the durable consumer `name`, which all instances of a service share. The consumer and,
   * unless another is named, the dead-letter stream `{stream}_DLQ` are made if they do not exist.
   *
   * Rejects with `config` (an option is out of range), `not_found` (there is no such stream, or the dead-letter stream that
   * was named), `conflict` (the consumer exists and differs in what cannot be changed; or the stream is a work queue, and the consumer in
   * `context.other` reads the same subjects) or `aborted`. Aborted later, the consumer is drained: the iteration ends.
   */
  async consume(stream: string, name: string, given: ConsumeOptions & Abortable = {}): Promise<Consumer> {
    refuseUnknown(given, { ...CONSUME_OPTIONS, signal: "signal" });
    const { signal, upcast, ...options } = given;
    refuseUnknown(options.retry ?? {}, RETRY_POLICY, "retry.");
    refuseNoString("stream", stream);
    refuseNoString("name", name);
    const { steps, run } = upcast === undefined ? { steps: [], run: undefined } : nativeUpcast(upcast);
    refuseAborted(signal);
    const starting = asked(() => this.#native.consume(stream, name, options, steps, run));
    const made = await unlessAborted(starting, signal, "no", (late) => late.beginToDrain());
    if (signal !== undefined) {
      // A signal may outlive many consumers.
      const consumer = new WeakRef(made);
      signal.addEventListener("abort", () => consumer.deref()?.beginToDrain(), { once: true });
    }
    return new Consumer(made, stream, name);
  }

  /**
   * Makes a stream as it should be: creates it, changes it in place, or leaves it.
   *
   * Rejects with `config` (it is unbounded and does not say so, or an option is wrong), `conflict` (it exists and cannot
   * be changed in place, or its subjects belong to another stream) or `would_remove` (messages are beyond a limit that it lowers;
   * `apply` can be allowed to).
   */
  async ensureStream(name: string, options: StreamOptions = {}): Promise<void> {
    refuseUnknown(options, STREAM_OPTIONS);
    await this.#ask("ensure_stream", snake(options, { name }));
  }

  /**
   * Makes a durable consumer as it should be. `consume` does so too; this is for set-up beforehand.
   *
   * Rejects with `config` (an option is wrong), `not_found` (there is no such stream) or `conflict`.
   */
  async ensureConsumer(stream: string, name: string, options: ConsumerOptions = {}): Promise<void> {
    refuseUnknown(options, CONSUMER_OPTIONS);
    await this.#ask("ensure_consumer", snake(options, { stream, name }));
  }

  /** Makes a key-value bucket as it should be. Rejects with `config`, `conflict` or `would_remove`, as `ensureStream`. */
  async ensureBucket(name: string, options: BucketOptions = {}): Promise<void> {
    refuseUnknown(options, BUCKET_OPTIONS);
    await this.#ask("ensure_bucket", snake(options, { name }));
  }

  /**
   * Compares a manifest (TOML, as `nats-bridge provision` reads it) with what is on the server, and changes nothing. Rejects with
   * `config` when the manifest is wrong.
   */
  async plan(manifest: string): Promise<Plan> {
    return plan(await this.#ask("plan", JSON.stringify({ manifest })));
  }

  /**
   * Makes everything as the manifest says, and resolves to what was done. What it does not name is not touched, and no stored message
   * is removed, unless `allowRemoval` lets a lower limit do so. Rejects with `config` (the manifest is wrong), or, when nothing was
   * changed, with `conflict` (something cannot be changed in place) or `would_remove` (stored messages are beyond a limit that it
   * lowers).
   */
  async apply(manifest: string, options: ApplyOptions = {}): Promise<Plan> {
    refuseUnknown(options, APPLY_OPTIONS);
    return plan(await this.#ask("apply", snake(options, { manifest })));
  }

  /** The dead letters in this stream, such as `ORDERS_DLQ`. Rejects with `not_found` when there is no such stream. */
  async deadLetters(stream: string): Promise<DeadLetters> {
    await this.#ask("dead_letters.open", JSON.stringify({ stream }));
    return new DeadLetters(this.#native, stream);
  }

  /** Opens the registry of schemas in this bucket, which is made if it does not exist. Rejects with `config` when its name is not legal. */
  async schemas(bucket: string): Promise<Schemas> {
    await this.#ask("schemas.open", JSON.stringify({ bucket }));
    return new Schemas(this.#native, bucket);
  }

  /**
   * Opens the ledger in this bucket, which is made if it does not exist. `keepMs` is how long a message may come again: longer than
   * its stream keeps it. `leaseMs` is how long an entry that was begun and not done is left to the worker that began it; longer than a
   * handler runs.
   *
   * Rejects with `config` when the bucket's name or a time is not legal.
   */
  async ledger(bucket: string, options: { readonly keepMs: number; readonly leaseMs: number }): Promise<Ledger> {
    refuseUnknown(options, { keepMs: "whole", leaseMs: "whole" });
    const { keepMs, leaseMs } = options;
    return new Ledger(await asked(() => this.#native.ledger(bucket, keepMs, leaseMs)));
  }

  /** A check of what a service needs; keep it, and ask it to `look` now and then. */
  healthCheck(options: HealthOptions = {}): HealthCheck {
    refuseUnknown(options, HEALTH_OPTIONS);
    return new HealthCheck(atOnce(() => this.#native.healthCheck(snake(options))));
  }

  /** The connection as it is now. `metrics` has what the whole process counts. */
  stats(): Stats {
    return camel(this.#native.stats()) as Stats;
  }

  async #ask(verb: string, given: string): Promise<string> {
    return asked(() => this.#native.ask(verb, given, undefined));
  }

  /** The version of the server that is connected now, such as `2.15.1`. */
  get serverVersion(): string {
    return this.#native.serverVersion;
  }

  /**
   * Waits at most `budgetMs` (default 5 000) for what is not confirmed yet, and until the server has back what consumers fetched and did not
   * hand out; then closes the connection. Deliveries that are not settled are not waited for: drain their consumers first. A consumer that
   * was not drained ends with `closed`. Closing twice is fine.
   *
   * Rejects with `timeout` when something was still not confirmed; it may have landed.
   */
  async close(options: { readonly budgetMs?: number } = {}): Promise<void> {
    refuseUnknown(options, { budgetMs: "whole" });
    const { budgetMs = 5_000 } = options;
    handOver();
    await asked(() => this.#native.close(budgetMs));
  }

  /** Closes it at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** @internal Throws a `TypeError` for what is no message. */
export function check(subject: unknown, payload: unknown, id: unknown, schema: unknown): void {
  if (typeof subject !== "string") {
    throw new TypeError(`subject: it is a string, not ${typeof subject}`);
  }
  if (typeof payload !== "string" && !(payload instanceof Uint8Array)) {
    throw new TypeError(`payload: it is a Uint8Array, a Buffer or a string, not ${typeof payload}`);
  }
  if (id !== undefined && id !== false && typeof id !== "string") {
    throw new TypeError(`id: it is a string or false, not ${typeof id}`);
  }
  if (schema !== undefined && typeof schema !== "string") {
    throw new TypeError(`schema: it is a string, not ${typeof schema}`);
  }
  refuseHalves("subject", subject);
  refuseHalves("payload", payload);
  refuseHalves("id", id);
  refuseHalves("schema", schema);
}

// Half of a character: UTF-8 has no bytes for it, and what would be put in its place makes different texts, and ids, alike.
function refuseHalves(name: string, text: unknown): void {
  if (typeof text === "string" && !text.isWellFormed()) {
    const why = "it has half of a character (a lone surrogate); give its bytes, if that is what is meant";
    throw new BridgeError(`invalid message: ${name}: ${why}`, { code: "invalid_message", context: { field: name, why } });
  }
}

/** @internal Subject, payload, id, headers and schema of each message in turn; what is wrong with one is said with its place. */
export function pushAll(messages: Iterable<Message>, all: unknown[]): void {
  let index = 0;
  for (const message of messages) {
    try {
      refuseUnknown(message, { subject: true, payload: true, id: true, headers: true, schema: true });
      check(message.subject, message.payload, message.id, message.schema);
      all.push(message.subject, message.payload, message.id, flat(message.headers), message.schema);
    } catch (error) {
      if (error instanceof BridgeError) {
        const { code, context, message } = error;
        throw new BridgeError(`messages[${index}]: ${message}`, { code, context: { ...context, index: String(index) } });
      }
      throw error instanceof TypeError ? new TypeError(`messages[${index}]: ${error.message}`) : error;
    }
    index += 1;
  }
}

/** @internal Names and values in turn, as the addon takes them. */
export function flat(headers: Headers = {}): string[] {
  const prototype: unknown = typeof headers === "object" && headers !== null ? Object.getPrototypeOf(headers) : undefined;
  if (prototype !== null && prototype !== Object.prototype) {
    throw new TypeError(`headers: an object of names and values, not ${kindOf(headers)}`);
  }
  const pairs: string[] = [];
  for (const [name, values] of Object.entries(headers)) {
    for (const value of Array.isArray(values) ? (values as readonly unknown[]) : [values]) {
      if (typeof value !== "string") {
        throw new TypeError(`headers: the value of '${name}' is a string or an array of strings, not ${typeof value}`);
      }
      refuseHalves(`headers['${name}']`, value);
      pairs.push(name, value);
    }
  }
  return pairs;
}
