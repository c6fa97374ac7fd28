import { camel } from "./options.js";

/** One stream, consumer or bucket that is not as it should be. */
export interface Change {
  /** Such as `stream ORDERS`. */
  readonly object: string;
  /** `conflict`: it differs in something that cannot be changed in place; applying refuses. */
  readonly action: "create" | "update" | "conflict";
  /** The fields that differ, by the manifest's words. */
  readonly fields: readonly string[];
  /** What it would cost, and what going back would cost, for people; how many messages it would remove. */
  readonly cost: string;
}

/** What applying a manifest would do. */
export interface Plan {
  /** In the order in which they would be made; none when everything is as it should be. */
  readonly changes: readonly Change[];
  /** What is allowed and may surprise. */
  readonly warnings: readonly string[];
}

/** A plan, of what the core says. */
export function plan(answer: string): Plan {
  const { changes, warnings } = camel(answer) as Crossed;
  return { changes: changes.map(({ object, action, cost }) => ({ object, ...read(action), cost })), warnings };
}

interface Difference {
  readonly field: string;
}

interface Crossed {
  readonly changes: readonly { readonly object: string; readonly action: Action; readonly cost: string }[];
  readonly warnings: readonly string[];
}

type Action = "create" | { readonly update?: readonly Difference[]; readonly conflict?: readonly Difference[] };

function read(action: Action): Pick<Change, "action" | "fields"> {
  if (typeof action === "string") {
    return { action, fields: [] };
  }
  const { update, conflict = [] } = action;
  return { action: update ? "update" : "conflict", fields: (update ?? conflict).map(({ field }) => field) };
}
