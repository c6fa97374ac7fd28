import { asked } from "./errors.js";
import type { NativeBridge } from "./native.js";
import { camel, refuseUnknown, snake } from "./options.js";

/**
 * What a new version owes to those before it: `BACKWARD` reads what they wrote, `FORWARD` is read by them, `FULL` both; without
 * `_TRANSITIVE`, only of the one before.
 */
export type Compatibility =
  | "NONE"
  | "BACKWARD"
  | "BACKWARD_TRANSITIVE"
  | "FORWARD"
  | "FORWARD_TRANSITIVE"
  | "FULL"
  | "FULL_TRANSITIVE";

/** A schema: its text, or what the text means. */
export type SchemaText = string | boolean | object;

/** How a schema is registered. */
export interface RegisterOptions {
  /** What new versions owe to older ones from now on; default as it was, or `BACKWARD` for the first one. */
  readonly compatibility?: Compatibility;
  /** Subjects on which messages may have it from now on, with wildcards; default as it was, or everywhere for the first one. */
  readonly subjects?: readonly string[];
  /** What language it is in; `json` (default), `avro` or `protobuf`. */
  readonly format?: string;
}

/** Where a schema is. */
export interface Registered {
  /** Its version. */
  readonly version: number;
  /** Whether it was there already. */
  readonly known: boolean;
}

/** One version of a schema. */
export interface Schema {
  /** Its name. */
  readonly name: string;
  /** Its version, from 1. */
  readonly version: number;
  /** What language it is in: `json`. */
  readonly format: string;
  /** Its text, as it was registered. */
  readonly schema: string;
  /** What new versions owe to older ones. */
  readonly compatibility: Compatibility;
  /** Subjects on which messages may have it; none: everywhere. */
  readonly subjects: readonly string[];
}

/** A demand of the reader's schema that does not follow from the writer's. */
export interface SchemaDifference {
  /** Where in the value: a JSON Pointer in which `*` means any other name or index. */
  readonly path: string;
  /** Which rule, such as `MAXIMUM_DECREASED`. */
  readonly rule: string;
  /** What the reader demands, or a value that it refuses. */
  readonly detail: string;
}

/** A registry of schemas in a key-value bucket, made by `bridge.schemas`. */
export class Schemas {
  readonly #native: NativeBridge;
  /** The bucket's name. */
  readonly bucket: string;

  /** @internal */
  constructor(made: NativeBridge, bucket: string) {
    this.#native = made;
    this.bucket = bucket;
  }

  /**
   * Registers a schema as the next version under this name, if it is compatible. One that is there already stays what it is.
   *
   * Rejects with `config` (the name, the schema or a subject is not legal), `conflict` (it is not compatible; `context` has
   * `reader`, `writer`, `path` and `rule`) or `argument` (`format` is no language).
   */
  async register(name: string, schema: SchemaText, options: RegisterOptions = {}): Promise<Registered> {
    refuseUnknown(options, { compatibility: true, subjects: true, format: true });
    return (await this.#ask("register", { ...options, name, schema: text(schema) })) as Registered;
  }

  /** What would not be compatible, if this schema were registered now. */
  async differences(
    name: string,
    schema: SchemaText,
    options: { readonly compatibility?: Compatibility; readonly format?: string } = {},
  ): Promise<SchemaDifference[]> {
    return (await this.#ask("differences", { ...options, name, schema: text(schema) })) as SchemaDifference[];
  }

  /** One version, or the newest. Rejects with `not_found` when there is none. */
  async get(name: string, version?: number): Promise<Schema> {
    return (await this.#ask("get", { name, version })) as Schema;
  }

  /** The names of all schemas, in their order. */
  async names(): Promise<string[]> {
    return (await this.#ask("names", {})) as string[];
  }

  /** Changes what new versions owe to older ones; those that are there are not looked at. */
  async setCompatibility(name: string, compatibility: Compatibility): Promise<void> {
    await this.#ask("set_compatibility", { name, compatibility });
  }

  async #ask(verb: string, given: object): Promise<unknown> {
    const json = snake(given, { bucket: this.bucket });
    return camel(await asked(() => this.#native.ask(`schemas.${verb}`, json, undefined)));
  }
}

function text(schema: SchemaText): string {
  return typeof schema === "string" ? schema : JSON.stringify(schema);
}
