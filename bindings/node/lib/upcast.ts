import { kindOf } from "./options.js";

/**
 * Makes of a payload that fits one version of a schema a payload that fits the next. It runs on the event loop, possibly more than once for
 * a message; what it throws goes into the dead letter.
 */
export type UpcastStep = (payload: Buffer) => Uint8Array | string;

/** Steps by schema and by the version that they begin with: `{ order: { 1: toSecond, 2: toThird } }`. */
export type Upcast = Readonly<Record<string, Readonly<Record<number, UpcastStep>>>>;

interface Stepped {
  readonly payload?: Buffer;
  readonly error?: string;
}

/** Steps as the addon takes them. */
export interface NativeUpcast {
  readonly steps: readonly { readonly schema: string; readonly from: number }[];
  readonly run: (schema: string, from: number, payload: Buffer) => Stepped;
}

/** @internal A `TypeError` for what is no step. */
export function nativeUpcast(upcast: Upcast): NativeUpcast {
  const byPlace = new Map<string, UpcastStep>();
  const steps = entries(upcast, "schemas").flatMap(([schema, versions]) =>
    entries(versions, `versions of '${schema}'`).map(([version, step]) => {
      if (!/^[1-9]\d{0,8}$/.test(version)) {
        throw new TypeError(`upcast: '${version}' of '${schema}' is no version, which is a whole number from 1`);
      }
      if (typeof step !== "function") {
        throw new TypeError(`upcast: version ${version} of '${schema}' has a function, not ${kindOf(step)}`);
      }
      byPlace.set(`${schema}/${version}`, step as UpcastStep);
      return { schema, from: Number(version) };
    }),
  );
  const run = (schema: string, from: number, payload: Buffer): Stepped => {
    try {
      return { payload: bytes(byPlace.get(`${schema}/${String(from)}`)?.(payload)) };
    } catch (error) {
      return { error: error instanceof Error ? `${error.name}: ${error.message}` : String(error) };
    }
  };
  return { steps, run };
}

function entries(of: unknown, what: string): [string, unknown][] {
  if (typeof of !== "object" || of === null || Array.isArray(of) || of instanceof Map) {
    throw new TypeError(`upcast: an object of ${what}, not ${kindOf(of)}`);
  }
  return Object.entries(of);
}

function bytes(made: unknown): Buffer {
  if (typeof made === "string") {
    return Buffer.from(made);
  }
  if (made instanceof Uint8Array) {
    return Buffer.from(made.buffer, made.byteOffset, made.byteLength);
  }
  throw new TypeError(`a step returns a Uint8Array, a Buffer or a string, not ${kindOf(made)}`);
}
