import type { Upcast } from "./upcast.js";

/** When a publisher stops taking messages because none is confirmed; then it rejects with `breaker_open`. */
export interface BreakerOptions {
  /** Opens when something waits for its confirm and nothing was confirmed for this long; default 2 000. */
  readonly tripAfterMs?: number;
  /** How often one message is let through while it is open; default 1 000. */
  readonly probeEveryMs?: number;
}

/** The bounds of publishing. */
export interface PublishOptions {
  /** Messages handed over and not confirmed; 1 to 32 768; default 4 096. At the bound, publishing waits. */
  readonly maxInFlight?: number;
  /** Bytes (subject, headers, payload) of those; default 32 MiB. A message larger than that goes alone. */
  readonly maxInFlightBytes?: number;
  /** How long to wait for a confirm before sending again; default 5 000. */
  readonly ackWaitMs?: number;
  /** How often one message is sent, the first time included; default 10. */
  readonly attempts?: number;
  /** How long one message is tried in all, connected or not; default 60 000. Keep it below the duplicate window. */
  readonly deadlineMs?: number;
  /**
   * How long a subject on which nobody answers is taken for a leader election and tried again; default 5 000. Where the server says that no
   * stream takes the subject, nothing is tried again.
   */
  readonly noStreamWaitMs?: number;
  /** Fails at once while NATS confirms nothing; default none: publishing waits. */
  readonly breaker?: BreakerOptions;
  /** Encrypts every payload under the current key of a directory with a file for each key, or of `env:NAME`; default none. */
  readonly encrypt?: string;
  /** Checks every payload against the schema that its message names, by the registry in this bucket; default none. */
  readonly schemas?: string;
}

/** How to reach NATS and how to behave when it is away. What is left out has its default. */
export interface ConnectOptions {
  /** The connection's name, shown by the server's `/connz`; default `nats-bridge`. */
  readonly name?: string;
  /** A user name, with `password` or `passwordFile`; default: what the URL says. */
  readonly user?: string;
  /** The password of `user`. */
  readonly password?: string;
  /** A file with the password of `user`. Like the other files of a login it is read again for each connection that is made. */
  readonly passwordFile?: string;
  /** A shared token to log in with. */
  readonly token?: string;
  /** A file with a shared token to log in with. */
  readonly tokenFile?: string;
  /** The seed of an nkey (`SU...`) to log in with. */
  readonly nkey?: string;
  /** A file with the seed of an nkey to log in with. */
  readonly nkeyFile?: string;
  /** A file with a JWT and a seed, as `nsc` writes it, to log in with. */
  readonly credentialsFile?: string;
  /** Files of certificate authorities (PEM) in addition to the system's. */
  readonly rootCertificates?: readonly string[];
  /** The file of a client certificate (PEM) for mutual TLS, with `clientKey`. */
  readonly clientCertificate?: string;
  /** The file of the key (PEM) of `clientCertificate`. */
  readonly clientKey?: string;
  /** Refuses a connection without TLS; default false. */
  readonly requireTls?: boolean;
  /** The longest wait for one connection attempt; default 5 000. */
  readonly connectTimeoutMs?: number;
  /** The longest wait for an answer of JetStream's API; default 5 000. */
  readonly requestTimeoutMs?: number;
  /** Time between pings that detect a dead connection (two unanswered ones end it); default 10 000. */
  readonly pingIntervalMs?: number;
  /** The longest pause between reconnect attempts, which go on for ever; default 4 000. */
  readonly reconnectPauseMaxMs?: number;
  /** A word that generated message ids start with; letters, digits, `-`; default none. */
  readonly region?: string;
  /** The bounds of publishing. */
  readonly publish?: PublishOptions;
}

/**
 * What an AMQP listener serves, and where. What is left out has its default.
 * Messages have to fit the `max_payload` of nats-server, of which 256 KiB are kept for headers: by default bodies of up to 786 432 bytes.
 */
export interface AmqpListenerOptions {
  /** The NATS that it serves: one URL, several separated by commas, or an array; default `nats://127.0.0.1:4222`. */
  readonly nats?: string | readonly string[];
  /** `HOST:PORT` for AMQP clients; default `127.0.0.1:0`, a free port. */
  readonly listen?: string;
  /** `HOST:PORT` for AMQPS clients, with `tlsCert` and `tlsKey`; default none. */
  readonly listenTls?: string;
  /** The file of the certificate (PEM) for AMQPS clients; read again when it changes. */
  readonly tlsCert?: string;
  /** The file of the key (PEM) of `tlsCert`. */
  readonly tlsKey?: string;
  /**
   * The file of the authorities (PEM) of clients' certificates: a client without one is refused, one that has it may log in by
   * `EXTERNAL`.
   */
  readonly tlsClientCa?: string;
  /**
   * With `tlsClientCa`: clients without any certificate are let in as well, as with RabbitMQ's `fail_if_no_peer_cert = false`; default
   * false.
   */
  readonly tlsClientOptional?: boolean;
  /** Who may log in: passwords by name; default `guest` with `guest`, on loopback addresses only. */
  readonly users?: Readonly<Record<string, string>>;
  /** The virtual hosts that exist; default `/`. */
  readonly vhosts?: readonly string[];
  /** How many servers of a cluster hold a durable classic queue that is made from now on; 1 to 5; default 1. */
  readonly replicas?: number;
  /** How to log in to NATS, and the rest that `connect` takes. */
  readonly connect?: ConnectOptions;
}

/** How a sidecar goes from RabbitMQ to JetStream. What is left out has its default. */
export interface SidecarOptions {
  /** RabbitMQ, as an AMQP URL, whose user is the sidecar's own. */
  readonly rabbit: string;
  /** NATS with JetStream: one URL, several separated by commas, or an array; default `nats://127.0.0.1:4222`. */
  readonly nats?: string | readonly string[];
  /**
   * RabbitMQ's management API, as `http://USER:PASSWORD@HOST:15672`, whose user needs the `monitoring` tag: before the weight is raised,
   * RabbitMQ's bindings and policies are compared with what was declared through the sidecar. This or `trustDeclared` is needed
   * for a weight above 0.
   */
  readonly rabbitManagement?: string;
  /**
   * Raises the weight without asking: you vouch that all bindings were declared through this sidecar and that no policy matters.
   * Default false.
   */
  readonly trustDeclared?: boolean;
  /** `HOST:PORT` for AMQP clients; default `127.0.0.1:0`, a free port. */
  readonly listen?: string;
  /** How many servers of a cluster hold a durable classic queue that is made from now on; 1 to 5; default 1. */
  readonly replicas?: number;
  /** Makes a quorum queue with fewer replicas where three cannot be held; false lists it as unmapped. Default true. */
  readonly quorumFallback?: boolean;
  /** How long a client may take to settle a delivery of JetStream's; 0: as long as it likes; default 1 800 000. */
  readonly consumerTimeoutMs?: number;
  /** How long deliveries may wait for what was published before a change of weight; default 30 000. */
  readonly fenceTimeoutMs?: number;
  /** How long a phase or weight has to be in force before the gate says yes; default 60 000. */
  readonly gateSoakMs?: number;
  /** How many messages have to be compared, or confirmed by JetStream, before the gate says yes; default 100. */
  readonly gateMessages?: number;
  /** How many times RabbitMQ's 99th percentile of confirm times JetStream's may be; 1 to 1000; default 1.5. */
  readonly gateLatencyFactor?: number;
  /**
   * Of whose messages the other broker keeps copies, so that a broker can be lost for good: of either's, of those that NATS owns, or of
   * nobody's. A publish is confirmed when both have it; in `shadow`, when RabbitMQ has it. Default `"both"`.
   */
  readonly standby?: "both" | "nats" | "off";
  /** How long JetStream may be silent at a weight above 0 before the sidecar rolls back by itself; default 10 000. */
  readonly rollbackAfterMs?: number;
  /**
   * Whether it rolls back by itself at all, also for messages that JetStream corrupts, drops, reorders or duplicates; default
   * true.
   */
  readonly autoRollback?: boolean;
  /**
   * A collector of OpenTelemetry that takes OTLP over HTTP, as `http://HOST:4318`. It gets a span of each publish and each delivery of
   * messages with a `traceparent` header that says "sampled", with the broker that had it; messages are passed on as they came.
   * Default none.
   */
  readonly otlpEndpoint?: string;
  /**
   * Serves the NATS account together with other sidecars that say so too, in other processes or on other machines: one leads, the
   * others take clients and pass them on to it, and one of them takes its place when it stops or dies. Default false: a second one
   * rejects with `conflict`.
   */
  readonly shared?: boolean;
  /** With `shared`: the host under which the others reach this one, where that is not the one of `listen`. */
  readonly advertise?: string;
  /**
   * With `shared`: `HOST:PORT` for status and control, which the sidecars pass on to the one that leads; `nats-bridge status` works there
   * too. Default `127.0.0.1:0`, a free port. Sidecars on other machines need an address that they reach, and a token.
   */
  readonly http?: string;
  /** With `shared`: what a change over `http` has to carry; the same for all. Default none: changes are taken from this machine only. */
  readonly httpToken?: string;
  /** How to log in to NATS, and the rest that `connect` takes. */
  readonly connect?: ConnectOptions;
}

/** How often and after which pauses something that failed is tried again. There is no endless policy. */
export interface RetryPolicy {
  /** Attempts in all, the first included; at least 1; default 5. */
  readonly attempts?: number;
  /** The pause after the first failure, before jitter; default 1 000. */
  readonly firstPauseMs?: number;
  /** What each pause is multiplied by to give the next; at least 1; default 2. */
  readonly factor?: number;
  /** The longest pause; default 60 000. */
  readonly maxPauseMs?: number;
  /** No further attempt starts later than this after the first failure; default none. */
  readonly maxElapsedMs?: number;
  /** Whether pauses are drawn from zero to their full length; default true. */
  readonly jitter?: boolean;
}

/** How to consume. */
export interface ConsumeOptions {
  /** Which subjects; default all of the stream. */
  readonly filterSubjects?: readonly string[];
  /** When to try again and when to give up. */
  readonly retry?: RetryPolicy;
  /** How long the server waits for a sign of life before it delivers again; default 30 000. */
  readonly ackWaitMs?: number;
  /** How long one delivery may be handled; default 600 000. Then it comes again, and that counts as a failure. */
  readonly maxRunMs?: number;
  /** The most messages that are here and not settled, waiting ones included; default 256. */
  readonly maxMessages?: number;
  /** The most bytes of those; default 16 MiB. A message larger than that is taken alone. */
  readonly maxBytes?: number;
  /** Where messages go that are given up; default `{stream}_DLQ`, which is made if it does not exist. */
  readonly deadLetterStream?: string;
  /**
   * The most bytes that `{stream}_DLQ` may hold when this makes it, which the server sets aside at once; default 1 GiB. One that exists stays as
   * it is. Not together with `deadLetterStream`.
   */
  readonly deadLetterMaxBytes?: number;
  /** Keeps the server's advisories in `{stream}_ADVISORIES`, so that what it gave up itself becomes a dead letter; default true. */
  readonly advisories?: boolean;
  /** When messages are pending and none came for this long, the pull is made anew; default 30 000. */
  readonly stalledAfterMs?: number;
  /** How often the server gives a sign of life on a waiting pull; default 5 000. */
  readonly heartbeatMs?: number;
  /**
   * Decrypts payloads with the keys of a directory, or of `env:NAME`; default none: they are handed out as they are. What cannot
   * be decrypted becomes a dead letter with reason `decrypt`.
   */
  readonly decrypt?: string;
  /** With `decrypt`: hands out messages that are not encrypted, too; default false: they become dead letters. */
  readonly acceptUnencrypted?: boolean;
  /**
   * Checks payloads against the schemas that their messages name, by the registry in this bucket; default none. What does not fit
   * becomes a dead letter with reason `schema`.
   */
  readonly schemas?: string;
  /** With `schemas`: hands out messages that name no schema, too; default false: they become dead letters. */
  readonly acceptWithoutSchema?: boolean;
  /**
   * With `schemas`: hands out payloads of older versions as the version that the last step leads to; default none. A payload is checked
   * before and after; one that has no step, or fails in one, becomes a dead letter with reason `schema`, as it was stored.
   */
  readonly upcast?: Upcast;
  /**
   * Of all instances that consume under this name with this set, one at a time gets messages, in the stream's order; default false. One that
   * was drained is followed at once; one that died, or cannot reach the server, after twice `ackWaitMs`, when what it held comes again
   * first. All need the same `ackWaitMs`, at least 1 000. See `Received.fencingNumber`.
   */
  readonly singleActive?: boolean;
}

/** What a stream should be. */
export interface StreamOptions {
  /** The subjects that it stores, with wildcards; default `{name in lower case}.>`. */
  readonly subjects?: readonly string[];
  /** When a message leaves it; default `limits`. It cannot be changed later. */
  readonly retention?: "limits" | "work_queue" | "interest";
  /** Where it is kept; default `file`. It cannot be changed later. */
  readonly storage?: "file" | "memory";
  /** Copies on different servers; default 1. */
  readonly replicas?: number;
  /** The most bytes it may hold. Needed unless `unbounded`. */
  readonly maxBytes?: number;
  /** The most messages it may hold. */
  readonly maxMessages?: number;
  /** The longest a message is kept. Needed with retention `limits` unless `unbounded`. */
  readonly maxAgeMs?: number;
  /** What happens at a limit: `new` refuses new messages (default), `old` drops the oldest, delivered or not. */
  readonly discard?: "new" | "old";
  /** How long an id is remembered; default 120 000. At most `maxAgeMs`. */
  readonly duplicateWindowMs?: number;
  /** Allows a stream without the limits that are otherwise demanded; default false. */
  readonly unbounded?: boolean;
}

/** What a durable consumer should be. */
export interface ConsumerOptions {
  /** Which subjects it reads; default all. */
  readonly filterSubjects?: readonly string[];
  /** How long a delivery may stay without a sign of life; default 30 000. */
  readonly ackWaitMs?: number;
  /** How often the server delivers a message at most: a net below the retry policy, not the policy; default 15. */
  readonly maxDeliver?: number;
}

/** What a key-value bucket should be. */
export interface BucketOptions {
  /** How many values of each key are kept; 1 to 64; default 1. */
  readonly history?: number;
  /** How long a value lives; default without end. */
  readonly ttlMs?: number;
  /** The most bytes it may hold. Needed unless `unbounded`. */
  readonly maxBytes?: number;
  /** Where it is kept; default `file`. It cannot be changed later. */
  readonly storage?: "file" | "memory";
  /** Copies on different servers; default 1. */
  readonly replicas?: number;
  /** Allows a bucket without `maxBytes`; default false. */
  readonly unbounded?: boolean;
}

/** How a manifest is applied. */
export interface ApplyOptions {
  /** Lowers limits although stored messages are beyond them, and so removed for good; default false. */
  readonly allowRemoval?: boolean;
}

/** What a service needs to work. */
export interface HealthOptions {
  /** Streams that must exist and have a leader. */
  readonly streams?: readonly string[];
  /** Consumers that must exist, as stream and name. */
  readonly consumers?: readonly (readonly [stream: string, name: string])[];
  /** Dead-letter streams that must exist and have room. */
  readonly deadLetters?: readonly string[];
  /** How many messages may wait for a consumer; default no bound. */
  readonly maxPending?: number;
  /** How far a mirror may lag behind, in messages; default no bound. */
  readonly maxMirrorLag?: number;
}

/** What the value of an option is; `true`: whoever reads it checks. */
export type Kind = keyof typeof KINDS | true;

const KINDS = {
  string: { wanted: "a string", is: (value: unknown) => typeof value === "string" },
  number: { wanted: "a number", is: (value: unknown) => typeof value === "number" },
  whole: { wanted: "a whole number", is: (value: unknown) => Number.isInteger(value) },
  boolean: { wanted: "true or false", is: (value: unknown) => typeof value === "boolean" },
  object: { wanted: "an object of names and values", is: (value: unknown) => typeof value === "object" && !Array.isArray(value) },
  signal: { wanted: "an AbortSignal", is: (value: unknown) => value instanceof AbortSignal },
  strings: {
    wanted: "an array of strings",
    is: (value: unknown) => Array.isArray(value) && value.every((one) => typeof one === "string"),
  },
} as const;

/** Every name of an options interface, so that a misspelt one is refused and never ignored, and what its value is. */
export type Names<T> = Record<keyof T, Kind>;

const PUBLISH_OPTIONS: Names<PublishOptions> = {
  maxInFlight: "whole",
  maxInFlightBytes: "whole",
  ackWaitMs: "whole",
  attempts: "whole",
  deadlineMs: "whole",
  noStreamWaitMs: "whole",
  breaker: "object",
  encrypt: "string",
  schemas: "string",
};

const BREAKER_OPTIONS: Names<BreakerOptions> = { tripAfterMs: "whole", probeEveryMs: "whole" };

const CONNECT_OPTIONS: Names<ConnectOptions> = {
  name: "string",
  user: "string",
  password: "string",
  passwordFile: "string",
  token: "string",
  tokenFile: "string",
  nkey: "string",
  nkeyFile: "string",
  credentialsFile: "string",
  rootCertificates: "strings",
  clientCertificate: "string",
  clientKey: "string",
  requireTls: "boolean",
  connectTimeoutMs: "whole",
  requestTimeoutMs: "whole",
  pingIntervalMs: "whole",
  reconnectPauseMaxMs: "whole",
  region: "string",
  publish: "object",
};

export const AMQP_LISTENER_OPTIONS: Names<AmqpListenerOptions> = {
  nats: true,
  listen: "string",
  listenTls: "string",
  tlsCert: "string",
  tlsKey: "string",
  tlsClientCa: "string",
  tlsClientOptional: "boolean",
  users: true,
  vhosts: "strings",
  replicas: "whole",
  connect: "object",
};

export const SIDECAR_OPTIONS: Names<SidecarOptions> = {
  rabbit: "string",
  nats: true,
  rabbitManagement: "string",
  trustDeclared: "boolean",
  listen: "string",
  replicas: "whole",
  quorumFallback: "boolean",
  consumerTimeoutMs: "whole",
  fenceTimeoutMs: "whole",
  gateSoakMs: "whole",
  gateMessages: "whole",
  gateLatencyFactor: "number",
  standby: "string",
  rollbackAfterMs: "whole",
  autoRollback: "boolean",
  otlpEndpoint: "string",
  shared: "boolean",
  advertise: "string",
  http: "string",
  httpToken: "string",
  connect: "object",
};

export const RETRY_POLICY: Names<RetryPolicy> = {
  attempts: "whole",
  firstPauseMs: "whole",
  factor: "number",
  maxPauseMs: "whole",
  maxElapsedMs: "whole",
  jitter: "boolean",
};

export const CONSUME_OPTIONS: Names<ConsumeOptions> = {
  filterSubjects: "strings",
  retry: "object",
  ackWaitMs: "whole",
  maxRunMs: "whole",
  maxMessages: "whole",
  maxBytes: "whole",
  deadLetterStream: "string",
  deadLetterMaxBytes: "whole",
  advisories: "boolean",
  stalledAfterMs: "whole",
  heartbeatMs: "whole",
  decrypt: "string",
  acceptUnencrypted: "boolean",
  schemas: "string",
  acceptWithoutSchema: "boolean",
  upcast: true,
  singleActive: "boolean",
};

export const STREAM_OPTIONS: Names<StreamOptions> = {
  subjects: "strings",
  retention: "string",
  storage: "string",
  replicas: "whole",
  maxBytes: "whole",
  maxMessages: "whole",
  maxAgeMs: "whole",
  discard: "string",
  duplicateWindowMs: "whole",
  unbounded: "boolean",
};

export const CONSUMER_OPTIONS: Names<ConsumerOptions> = { filterSubjects: "strings", ackWaitMs: "whole", maxDeliver: "whole" };

export const BUCKET_OPTIONS: Names<BucketOptions> = {
  history: "whole",
  ttlMs: "whole",
  maxBytes: "whole",
  storage: "string",
  replicas: "whole",
  unbounded: "boolean",
};

export const APPLY_OPTIONS: Names<ApplyOptions> = { allowRemoval: "boolean" };

export const HEALTH_OPTIONS: Names<HealthOptions> = {
  streams: "strings",
  consumers: true,
  deadLetters: "strings",
  maxPending: "whole",
  maxMirrorLag: "whole",
};

/**
 * Throws a `TypeError` for what is no object of options, for a name in it that is not one of `names`, and for a value of another type. `within`
 * is what the options are those of.
 */
export function refuseUnknown(options: unknown, names: Readonly<Record<string, Kind>>, within = ""): void {
  if (typeof options !== "object" || options === null || Array.isArray(options)) {
    throw new TypeError(`options are an object of names and values, not ${kindOf(options)}`);
  }
  for (const [name, value] of Object.entries(options) as [string, unknown][]) {
    const kind = Object.hasOwn(names, name) ? names[name] : undefined;
    if (kind === undefined) {
      throw new TypeError(`there is no option '${within}${name}'`);
    }
    if (kind !== true && value !== undefined && value !== null && !KINDS[kind].is(value)) {
      throw new TypeError(`option '${within}${name}': ${KINDS[kind].wanted} is wanted, not ${shown(value)}`);
    }
  }
}

/** Throws a `TypeError` for an argument that is no string. */
export function refuseNoString(name: string, value: unknown): void {
  if (typeof value !== "string") {
    throw new TypeError(`argument '${name}': a string is wanted, not ${shown(value)}`);
  }
}

/** The same for the options of `connect`, with what they hold, beside `more`. */
export function refuseUnknownToConnect(options: ConnectOptions, more: Readonly<Record<string, Kind>> = {}): void {
  refuseUnknown(options, { ...CONNECT_OPTIONS, ...more });
  refuseUnknown(options.publish ?? {}, PUBLISH_OPTIONS, "publish.");
  refuseUnknown(options.publish?.breaker ?? {}, BREAKER_OPTIONS, "publish.breaker.");
}

// What was given. A text may be a secret, so it is not shown.
function shown(value: unknown): string {
  const plain = typeof value === "number" || typeof value === "boolean" || typeof value === "bigint";
  return plain ? `${typeof value} ${String(value)}` : Array.isArray(value) ? "an array" : kindOf(value);
}

/** @internal What `console.log` and `util.inspect` ask an object for. */
export const inspected = Symbol.for("nodejs.util.inspect.custom");

/** What a value is, for an error; `functions`: which kind of function as well. */
export function kindOf(value: unknown, functions = false): string {
  // `[object Map]`
  return typeof value === "object" || functions ? Object.prototype.toString.call(value).slice(8, -1) : typeof value;
}

/** Names and values as the core reads them: JSON with names in snake case. */
export function snake(options: object, names: Readonly<Record<string, unknown>> = {}): string {
  const given = Object.entries(options).map(([name, value]: [string, unknown]) => [
    name.replace(/[A-Z]/g, (capital) => `_${capital.toLowerCase()}`),
    value,
  ]);
  return JSON.stringify({ ...Object.fromEntries(given), ...names });
}

/** What the core says: its JSON with names in camel case. */
export function camel(json: string): unknown {
  return JSON.parse(json, (_, value: unknown) => {
    if (value === null || typeof value !== "object" || Array.isArray(value)) {
      return value;
    }
    const named = Object.entries(value).map(([name, held]: [string, unknown]) => [
      name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase()),
      held,
    ]);
    return Object.fromEntries(named) as unknown;
  });
}
