import { atOnce } from "./errors.js";
import { native } from "./native.js";
import { kindOf, refuseUnknown } from "./options.js";

/** How bad it is. */
export type LogLevel = "error" | "warn" | "info" | "debug";

/** Something that the core has to say. */
export interface LogRecord {
  readonly level: LogLevel;
  /** `nats_bridge.` and the part that says it, such as `nats_bridge.consume`. */
  readonly name: string;
  /** What happened, for people, with the fields. */
  readonly message: string;
  /** What is known about it, such as `{ stream: "ORDERS" }`. */
  readonly fields: Readonly<Record<string, string>>;
  readonly at: Date;
}

interface Batch {
  readonly records: readonly (Omit<LogRecord, "at"> & { readonly atMs: number })[];
  readonly dropped: number;
}

let current: ((record: LogRecord) => void) | undefined;
let began = false;

/**
 * Gives `handler` what the core logs in this process from now on, from `level` (default `info`) on; `undefined` ends it. A later
 * handler replaces the one before.
 *
 * Records come on the event loop, many in one turn, and the rest when the process exits. When more wait than 4 096, those that come are
 * counted, and the count is a record too. What `handler` throws is an uncaught exception. It does not keep the process running.
 *
 * Throws `config` when another thread of this process is given the records, and for a level that does not exist.
 */
export function onLog(
  handler: ((record: LogRecord) => void) | undefined,
  options: { readonly level?: LogLevel } = {},
): void {
  refuseUnknown(options, { level: "string" });
  if (handler !== undefined && typeof handler !== "function") {
    throw new TypeError(`argument 'handler': a function is wanted, not ${kindOf(handler)}`);
  }
  if (handler !== undefined) {
    if (!began) {
      atOnce(() => native.collectLogs(passOn));
      began = true;
      process.on("exit", passOn);
    }
    atOnce(() => native.setLogLevel(options.level ?? "info"));
  }
  current = handler;
}

function passOn(): void {
  for (;;) {
    const { records, dropped } = JSON.parse(native.takeLogs()) as Batch;
    for (const { atMs, ...record } of records) {
      tell({ ...record, at: new Date(atMs) });
    }
    if (dropped > 0) {
      const fields = { dropped: String(dropped) };
      const message = `records were dropped: the event loop is too slow dropped=${dropped}`;
      tell({ level: "warn", name: "nats_bridge.logging", message, fields, at: new Date() });
    }
    if (records.length === 0) {
      return;
    }
  }
}

function tell(record: LogRecord): void {
  try {
    current?.(record);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
