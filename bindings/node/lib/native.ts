// The addon, as the Rust in `src/` exports it: what is a promise here may be its value instead, when that is there at once, so it is
// awaited and nothing else. Private: `index.ts` is the public API.

import { existsSync } from "node:fs";
import { join } from "node:path";

import type { ConsumerState } from "./consumer.js";
import type { Reason, Settled } from "./delivery.js";
import type { AmqpListenerOptions, ConnectOptions, ConsumeOptions } from "./options.js";
import type { NativeUpcast } from "./upcast.js";

export interface NativePublished {
  readonly stream: string;
  readonly sequence: number;
  readonly duplicate: boolean;
  readonly id?: string;
  readonly landed: "yes";
}

/** Delivered messages, each known by its place, from 0. */
export interface NativePage {
  subject(at: number): string;
  payload(at: number): Buffer;
  id(at: number): string | null;
  headers(at: number): Record<string, string[]>;
  header(at: number, name: string): string | null;
  keyId(at: number): string | null;
  attempt(at: number): number;
  sequence(at: number): number;
  fencingNumber(at: number): number | null;
  storedAtMs(at: number): number;
  pending(at: number): number;
  ackMany(places: readonly number[]): Promise<void> | undefined;
  ackConfirmed(at: number): Promise<void>;
  retry(at: number, kind: string, detail: string, delayMs: number | undefined): Promise<Settled>;
  deadLetter(at: number, reason: Reason, kind: string, detail: string): Promise<Settled>;
  giveBack(at: number): void;
}

export interface NativeJob {
  readonly wantsKey: boolean;
  message(): NativePage;
  key(key: string): void;
  done(): void;
  failed(kind: string, detail: string, giveUp: Reason | undefined): void;
}

export interface NativeJobs {
  next(): Promise<NativeJob | null>;
}

export interface NativeStop {
  stop(): void;
}

export interface NativeConsumer {
  readonly state: { readonly state: ConsumerState; readonly why?: string };
  readonly held: number;
  /** The place of the next delivery in `page`; below 0: none is there, or the page is full. */
  take(page: NativePage): number;
  next(timeoutMs: number | undefined, stop: NativeStop | undefined): Promise<NativePage | null>;
  jobs(concurrency: number, keyed: boolean): NativeJobs;
  beginToDrain(): void;
  leave(budgetMs: number): Promise<void>;
  drain(budgetMs: number): Promise<void>;
}

export interface NativeHealthCheck {
  look(): Promise<string>;
}

export interface NativeLedgerEntry {
  readonly state: "first" | "done" | "elsewhere";
  done(): Promise<void>;
  undo(): Promise<void>;
}

export interface NativeLedger {
  begin(id: string): Promise<NativeLedgerEntry>;
}

export interface NativeOutbox {
  start(bridge: NativeBridge): Promise<void>;
  put(
    subject: string,
    payload: Uint8Array | string,
    id: string | undefined,
    headers: readonly string[],
    schema: string | undefined,
  ): Promise<{ readonly number: number; readonly id: string }>;
  putMany(messages: readonly unknown[]): Promise<{ readonly number: number; readonly id: string }[]>;
  ask(verb: string, json: string): Promise<string>;
  status(): string;
}

export interface NativeBridge {
  readonly serverVersion: string;
  publish(
    subject: string,
    payload: Uint8Array | string,
    id: string | false | undefined,
    headers: readonly string[],
    schema: string | undefined,
    stop: NativeStop | undefined,
  ): Promise<NativePublished | null>;
  publishMany(messages: readonly unknown[], stop: NativeStop | undefined): Promise<(NativePublished | string)[] | null>;
  consume(
    stream: string,
    name: string,
    options: Omit<ConsumeOptions, "upcast">,
    steps: NativeUpcast["steps"],
    run: NativeUpcast["run"] | undefined,
  ): Promise<NativeConsumer>;
  ask(verb: string, json: string, stop: NativeStop | undefined): Promise<string>;
  stats(): string;
  healthCheck(required: string): NativeHealthCheck;
  ledger(bucket: string, keepMs: number, leaseMs: number): Promise<NativeLedger>;
  close(budgetMs: number): Promise<void>;
}

export interface NativeAmqpListener {
  readonly url: string;
  readonly address: { readonly host: string; readonly port: number };
  readonly tlsAddress: { readonly host: string; readonly port: number } | null;
  readonly connections: number;
  readonly state: { readonly state: "running" | "draining" | "stopped" | "failed"; readonly why?: string };
  stop(budgetMs: number): Promise<void>;
  wait(): Promise<void>;
}

export interface NativeSidecar {
  listener(): NativeAmqpListener;
  ask(verb: string, json: string): Promise<string>;
}

/** The options as the addon takes them: users are names and passwords in turn. */
export type NativeAmqpListenerOptions = Omit<AmqpListenerOptions, "nats" | "users"> & { readonly users?: readonly string[] };

export interface Native {
  readonly Stop: new () => NativeStop;
  startAmqpListener(nats: readonly string[], options: NativeAmqpListenerOptions): Promise<NativeAmqpListener>;
  startSidecar(nats: readonly string[], connect: ConnectOptions, options: string): Promise<NativeSidecar>;
  originalName(name: string): string | null;
  renderMetrics(): string;
  collectLogs(wake: () => void): void;
  setLogLevel(level: string): void;
  takeLogs(): string;
  connect(servers: readonly string[], options: ConnectOptions): Promise<NativeBridge>;
  openOutbox(json: string): Promise<NativeOutbox>;
}

function load(): Native {
  const file = join(__dirname, "..", `nats-bridge.${process.platform}-${process.arch}.node`);
  if (!existsSync(file)) {
    throw new Error(`nats-bridge has no addon for ${process.platform}-${process.arch}: ${file} is missing; build it with: npm run build`);
  }
  return require(file) as Native;
}

export const native: Native = load();
