// The addon, as the Rust in `src/` exports it. Private: `index.ts` is the public API.

import { existsSync } from "node:fs";
import { join } from "node:path";

import type { ConsumerState } from "./consumer.js";
import type { Reason, Settled } from "./delivery.js";
import type { ConnectOptions, ConsumeOptions } from "./options.js";

export interface NativePublished {
  readonly stream: string;
  readonly sequence: number;
  readonly duplicate: boolean;
  readonly id?: string;
}

export interface NativeDelivery {
  readonly subject: string;
  readonly payload: Buffer;
  readonly id: string | null;
  readonly headers: Record<string, string[]>;
  readonly attempt: number;
  readonly sequence: number;
  readonly storedAtMs: number;
  readonly pending: number;
  readonly settled: boolean;
  header(name: string): string | null;
  ack(confirmed: boolean): Promise<Settled>;
  retry(kind: string, detail: string, delayMs: number | undefined): Promise<Settled>;
  deadLetter(reason: Reason, kind: string, detail: string): Promise<Settled>;
}

export interface NativeConsumer {
  readonly state: { readonly state: ConsumerState; readonly why?: string };
  readonly held: number;
  next(timeoutMs: number | undefined): Promise<NativeDelivery | null>;
  drain(budgetMs: number): Promise<void>;
}

export interface NativeBridge {
  readonly serverVersion: string;
  publish(
    subject: string,
    payload: Uint8Array,
    id: string | false | undefined,
    headers: readonly string[],
  ): Promise<NativePublished>;
  consume(stream: string, name: string, options: ConsumeOptions): Promise<NativeConsumer>;
  ensure(kind: "stream" | "consumer", json: string): Promise<void>;
  close(budgetMs: number): Promise<void>;
}

export interface Native {
  originalName(name: string): string | null;
  connect(servers: readonly string[], options: ConnectOptions): Promise<NativeBridge>;
}

function load(): Native {
  const file = join(__dirname, "..", `nats-bridge.${process.platform}-${process.arch}.node`);
  if (!existsSync(file)) {
    throw new Error(`nats-bridge has no addon for ${process.platform}-${process.arch}: ${file} is missing; build it with: npm run build`);
  }
  return require(file) as Native;
}

export const native: Native = load();
