import { asked, atOnce } from "./errors.js";
import type { NativePage } from "./native.js";

// So many cross to the addon together, at the latest.
const MOST = 32;

// Acks of this turn of the event loop that were not handed over yet: all of one page.
let page: NativePage | undefined;
let places: number[] = [];
// What they wait for when the client takes no more at present, and why the last ones were not taken.
let crossing: Promise<void> | undefined;
let failed: { readonly why: unknown } | undefined;

/**
 * Acks the message at this place with the next ones, before the event loop turns. The promise of it only where the client takes no more
 * at present.
 *
 * Rejects when those before could not be handed over; so could not this one.
 */
export function ackSoon(of: NativePage, at: number): Promise<void> | undefined {
  if (of !== page) {
    handOver();
    page = of;
    process.nextTick(handOver);
  }
  places.push(at);
  if (places.length >= MOST) {
    handOver();
  }
  if (failed !== undefined) {
    const { why } = failed;
    failed = undefined;
    throw why;
  }
  return crossing;
}

/** Hands over the acks that wait for that. */
export function handOver(): void {
  if (page === undefined) {
    return;
  }
  const [of, these] = [page, places];
  page = undefined;
  places = [];
  try {
    const waits = atOnce(() => of.ackMany(these));
    if (waits !== undefined) {
      const ended = asked(() => waits).catch((why: unknown) => {
        failed = { why };
      });
      crossing = ended;
      void ended.then(() => {
        if (crossing === ended) {
          crossing = undefined;
        }
      });
    }
  } catch (why) {
    failed = { why };
  }
}
