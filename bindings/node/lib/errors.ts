/** `"no"`: it is not stored, a resend cannot duplicate. `"unknown"`: resend only with the same id. */
export type Landed = "no" | "unknown";

/** What went wrong, as one word; the same in every language. */
export type ErrorCode =
  | "aborted"
  | "already_settled"
  | "breaker_open"
  | "closed"
  | "config"
  | "conflict"
  | "corrupt"
  | "decrypt"
  | "denied"
  | "disk"
  | "in_use"
  | "gate"
  | "invalid_message"
  | "not_drained"
  | "not_rehearsed"
  | "not_found"
  | "outbox_full"
  | "rejected"
  | "schema"
  | "side_down"
  | "timeout"
  | "too_large"
  | "unknown_key"
  | "unmapped"
  | "unreachable"
  | "unsupported"
  | "window_full"
  | "would_remove"
  | "wrong_phase";

/** What is known about a failure. Which of it is there depends on what went wrong; keys that are not listed may be. */
export interface ErrorContext {
  /** The option or argument that is wrong, such as `retry.attempts`. */
  readonly field?: string;
  /** What is wrong, for people. */
  readonly why?: string;
  /** What to do about it, for people. */
  readonly fix?: string;
  readonly stream?: string;
  readonly consumer?: string;
  readonly bucket?: string;
  readonly subject?: string;
  readonly sequence?: string;
  /** The id of a message. */
  readonly msgId?: string;
  /** The place of a message among many. */
  readonly index?: string;
  /** JetStream's code of an error, such as `10077`. */
  readonly errCode?: string;
  /** The size of headers and payload, and what the server takes. */
  readonly payloadBytes?: string;
  readonly maxPayload?: string;
  /** How many bytes were asked for. */
  readonly maxBytes?: string;
  /** How many deliveries a drain left. */
  readonly notSettled?: string;
  /** Where in a payload it does not fit its schema, as a JSON Pointer, and the value there. */
  readonly path?: string;
  readonly value?: string;
  readonly schema?: string;
  /** The key that is not there. */
  readonly key?: string;
  /** The other consumer of a work queue. */
  readonly other?: string;
  /** Who has what was asked for. */
  readonly holder?: string;
  /** The codes of the reasons why a gate says no. */
  readonly reasons?: string;
  readonly [name: string]: string | undefined;
}

/** What is known about a failure besides its text. */
export interface BridgeErrorDetails {
  readonly code: ErrorCode;
  readonly landed?: Landed;
  readonly isTemporary?: boolean;
  readonly context?: ErrorContext;
  readonly cause?: unknown;
}

/** Why a call failed, and whether the message may have landed anyway. Wrong JavaScript types are a `TypeError`. */
export class BridgeError extends Error {
  override readonly name = "BridgeError";
  /** What went wrong. */
  readonly code: ErrorCode;
  /** Whether the message may be stored although the call failed; `"no"` for calls that store nothing. */
  readonly landed: Landed;
  /** Whether the same call may succeed later without anybody changing anything. */
  readonly isTemporary: boolean;
  /** What is known about the failure, such as `{ stream: "ORDERS" }`. */
  readonly context: ErrorContext;

  constructor(text: string, details: BridgeErrorDetails) {
    super(text, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = details.code;
    this.landed = details.landed ?? "no";
    this.isTemporary = details.isTemporary ?? false;
    this.context = Object.freeze({ ...details.context });
  }
}

// What the addon puts into the message of an error; see `src/errors.rs`.
interface Crossed {
  readonly code: ErrorCode;
  readonly landed: Landed;
  readonly temporary: boolean;
  readonly text: string;
  readonly context: ErrorContext;
}

/** Calls the addon, and makes a `BridgeError` of what it rejects with. */
export async function asked<T>(call: () => T | Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw rebuilt(error);
  }
}

/** Calls the addon for something that is there at once. */
export function atOnce<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw rebuilt(error);
  }
}

/** The `BridgeError` for an error of the addon; a `TypeError` for an argument that the addon could not convert. */
export function rebuilt(error: unknown): unknown {
  if (!(error instanceof Error)) {
    return error;
  }
  if (!error.message.startsWith('{"')) {
    return "code" in error && typeof error.code === "string" && /(Expected|InvalidArg)$/.test(error.code)
      ? new TypeError(error.message)
      : error;
  }
  return crossed(error.message);
}

/** The `BridgeError` that crossed as this text. */
export function crossed(text: string): BridgeError {
  const crossed = JSON.parse(text) as Crossed;
  return new BridgeError(crossed.text, {
    code: crossed.code,
    landed: crossed.landed,
    isTemporary: crossed.temporary,
    context: crossed.context,
  });
}
