import { asked, BridgeError, type Landed } from "./errors.js";
import { native, type NativeStop } from "./native.js";

/** A call that an `AbortSignal` ends. */
export interface Abortable {
  /** Ends the call: it rejects with `aborted`, whose `cause` is the signal's reason. */
  readonly signal?: AbortSignal;
}

/** Throws when the signal was aborted before anything was begun. */
export function refuseAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) {
    throw aborted(signal, "no");
  }
}

/**
 * What `work` resolves to, unless the signal is aborted first: then it rejects with `aborted`, and `late` is given what the work
 * resolves to afterwards.
 */
export async function unlessAborted<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
  landed: Landed,
  late: (value: T) => void = () => {},
): Promise<T> {
  if (signal === undefined) {
    return work;
  }
  const { promise, refuse } = refusal();
  const onAbort = () => {
    work.then(late, () => {});
    refuse(aborted(signal, landed));
  };
  if (signal.aborted) {
    onAbort();
  } else {
    signal.addEventListener("abort", onAbort, { once: true });
  }
  try {
    return await Promise.race([promise, work]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/** As `unlessAborted`, of a call that the addon ends: then nothing of it keeps the process running. */
export async function stopped<T>(
  call: (stop: NativeStop | undefined) => Promise<T | null>,
  signal: AbortSignal | undefined,
  landed: Landed,
): Promise<T> {
  const stop = signal && new native.Stop();
  const onAbort = () => stop?.stop();
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    const made = await asked(() => call(stop));
    if (made === null) {
      throw aborted(signal ?? AbortSignal.abort(), landed);
    }
    return made;
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
}

/** The error of a call that was ended by its signal. */
export function aborted(signal: AbortSignal, landed: Landed): BridgeError {
  const maybe = landed === "unknown" ? " (the message may have been stored)" : "";
  return new BridgeError(`aborted${maybe}`, { code: "aborted", landed, cause: signal.reason });
}

function refusal(): { readonly promise: Promise<never>; readonly refuse: (error: unknown) => void } {
  let refuse: (error: unknown) => void = () => {};
  const promise = new Promise<never>((_, reject) => {
    refuse = reject;
  });
  return { promise, refuse };
}
