// The scenarios that every language does; `tests/scenarios/README.md` says what the steps mean.

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { BridgeError, connect, GiveUp, openOutbox } from "nats-bridge";

import { NatsServer } from "./server.mjs";

/**
 * @typedef {{ subject: string, payload: string, id?: string, headers?: Record<string, string[]>, schema?: string }} Given
 * @typedef {Omit<Given, "schema"> & { schema?: string | object, schemas?: true,
 *   do: string, as: string, of: string, delivery: string, stream: string, name: string, options: Record<string, unknown>,
 *   messages: Given[], subjects: string[], count: number, confirmed?: boolean, why: string,
 *   reason: import("nats-bridge").Reason, delay_ms?: number, budget_ms?: number, by: import("nats-bridge").GroupBy,
 *   sequence: number, filter?: { reason?: string }, to?: string, dry_run?: boolean, concurrency: number, key: string,
 *   encrypt?: string, decrypt?: string, fail_once: string[], give_up: string[], until: number, expect?: unknown, error?: unknown,
 * }} Step
 */

const folder = fileURLToPath(new URL("../../../tests/scenarios", import.meta.url));
const PATIENCE = 15_000;
const REGISTRY = "SCHEMAS";

/**
 * Names in camel case as names in snake case, or the other way round.
 *
 * @param {unknown} value
 * @param {(name: string) => string} renamed
 * @returns {unknown}
 */
function rename(value, renamed) {
  if (value === null || typeof value !== "object" || Array.isArray(value) || Buffer.isBuffer(value)) {
    return Array.isArray(value) ? value.map((one) => rename(one, renamed)) : value;
  }
  return Object.fromEntries(
    Object.entries(value).map(([name, held]) => [renamed(name), name === "headers" ? held : rename(held, renamed)]),
  );
}

/** @param {unknown} value */
const snake = (value) => rename(value, (name) => name.replace(/[A-Z]/g, (capital) => `_${capital.toLowerCase()}`));

/** @param {unknown} value */
const camel = (value) => rename(value, (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase()));

/**
 * Everything that is expected must be so; what is not named is not looked at.
 *
 * @param {unknown} found
 * @param {unknown} expected
 * @param {Step} step
 */
function check(found, expected, step) {
  const text = JSON.stringify(step);
  if (Array.isArray(expected)) {
    assert(Array.isArray(found) && found.length === expected.length, `${text}: ${JSON.stringify(found)}`);
    expected.forEach((wanted, n) => check(found[n], wanted, step));
  } else if (expected !== null && typeof expected === "object") {
    assert(found !== null && typeof found === "object", text);
    for (const [name, wanted] of Object.entries(expected)) {
      check(/** @type {Record<string, unknown>} */ (found)[name], wanted, step);
    }
  } else {
    assert.deepEqual(found, expected, text);
  }
}

/** @param {BridgeError} error */
const failed = ({ code, landed, context }) => ({ code, landed, context });

/** A server, a connection, and what the steps have named. */
class World {
  /** @type {Map<string, import("nats-bridge").Consumer>} */
  consumers = new Map();
  /** @type {Map<string, import("nats-bridge").Delivery>} */
  deliveries = new Map();

  /**
   * @param {NatsServer} server
   * @param {import("nats-bridge").Bridge} bridge
   * @param {string} keys
   */
  constructor(server, bridge, keys) {
    this.server = server;
    this.bridge = bridge;
    this.keys = keys;
    /** @type {import("nats-bridge").Bridge[]} */
    this.connected = [];
  }

  /**
   * Goes on with another connection.
   *
   * @param {string | undefined} encrypt
   * @param {true | undefined} schemas
   */
  async connect(encrypt, schemas) {
    const keys = encrypt && { encrypt: join(this.keys, encrypt) };
    const publish = { noStreamWaitMs: 500, ...keys, ...(schemas && { schemas: REGISTRY }) };
    this.bridge = await connect(this.server.url, { reconnectPauseMaxMs: 100, publish });
    this.connected.push(this.bridge);
  }

  /** @param {{ steps: Step[] }} scenario */
  async run({ steps }) {
    for (const step of steps) {
      let found;
      try {
        found = await this.act(step);
      } catch (error) {
        if (!(error instanceof BridgeError)) throw error;
        assert(step.error !== undefined, `${JSON.stringify(step)}: ${error.message}`);
        check(failed(error), step.error, step);
        continue;
      }
      assert(step.error === undefined, `${JSON.stringify(step)}: an error was expected, not ${JSON.stringify(found)}`);
      if (step.expect !== undefined) check(snake(found), step.expect, step);
    }
  }

  /** @type {import("nats-bridge").Outbox | undefined} */
  opened;

  get outbox() {
    assert(this.opened !== undefined, "the outbox is not open");
    return this.opened;
  }

  /** @param {string} name */
  consumer(name) {
    const consumer = this.consumers.get(name);
    assert(consumer !== undefined, `there is no consumer ${name}`);
    return consumer;
  }

  /** @param {string} name */
  delivery(name) {
    const delivery = this.deliveries.get(name);
    assert(delivery !== undefined, `there is no delivery ${name}`);
    return delivery;
  }

  /**
   * @param {Step} step
   * @returns {Promise<unknown>}
   */
  async act(step) {
    switch (step.do) {
      case "stream":
        return this.bridge.ensureStream(step.name, /** @type {import("nats-bridge").StreamOptions} */ (camel(step.options)));
      case "key":
        mkdirSync(join(this.keys, step.of), { recursive: true });
        writeFileSync(join(this.keys, step.of, step.name), step.key);
        return;
      case "connect":
        return this.connect(step.encrypt, step.schemas);
      case "register":
        return (await this.bridge.schemas(REGISTRY)).register(step.name, step.schema ?? {});
      case "publish": {
        const { subject, payload, id, headers, schema } = step;
        const named = typeof schema === "string" && { schema };
        return this.bridge.publish(subject, payload, { ...(id && { id }), ...(headers && { headers }), ...named });
      }
      case "publish_many":
        return (await this.bridge.publishMany(step.messages)).map((outcome) =>
          outcome instanceof BridgeError ? failed(outcome) : outcome,
        );
      case "publish_range": {
        const { subjects, count } = step;
        const messages = Array.from({ length: count }, (_, n) => ({
          subject: subjects[n % subjects.length] ?? "",
          payload: `${n}`,
          id: `n-${n}`,
        }));
        for (const { landed } of await this.bridge.publishMany(messages)) assert.equal(landed, "yes");
        return;
      }
      case "consume": {
        const given = /** @type {import("nats-bridge").ConsumeOptions} */ (camel(step.options));
        const { decrypt, schemas, ...rest } = given;
        const keys = decrypt && { decrypt: join(this.keys, decrypt) };
        const options = { ...rest, ...keys, ...(schemas && { schemas: REGISTRY }), heartbeatMs: 500 };
        this.consumers.set(step.as, await this.bridge.consume(step.stream, step.name, options));
        return;
      }
      case "next": {
        const delivery = await this.consumer(step.of).next({ timeoutMs: PATIENCE });
        assert(delivery !== undefined, `${JSON.stringify(step)}: nothing came`);
        this.deliveries.set(step.as, delivery);
        const { subject, payload, id, keyId = null, attempt, sequence, fencingNumber = null, headers } = delivery;
        return { subject, payload: payload.toString(), id, keyId, attempt, sequence, fencingNumber, headers };
      }
      case "none":
        assert.equal(await this.consumer(step.of).next({ timeoutMs: 100 }), undefined);
        return;
      case "collect": {
        const seen = [];
        while (seen.length < /** @type {string[]} */ (step.expect).length) {
          const delivery = await this.consumer(step.of).next({ timeoutMs: PATIENCE });
          assert(delivery !== undefined, `${JSON.stringify(step)}: only ${seen}`);
          seen.push(delivery.payload.toString());
          await delivery.ack();
        }
        return seen.toSorted();
      }
      case "ack":
        return this.delivery(step.delivery).ack({ confirmed: step.confirmed ?? false });
      case "retry": {
        const delay = step.delay_ms === undefined ? {} : { delayMs: step.delay_ms };
        return this.delivery(step.delivery).retry(step.why, delay);
      }
      case "dead_letter":
        return this.delivery(step.delivery).deadLetter(step.why, { reason: step.reason });
      case "run":
        return this.handle(step);
      case "drain":
        return this.consumer(step.of).drain({ budgetMs: step.budget_ms ?? PATIENCE });
      case "state":
        return this.consumer(step.of).state;
      case "open_outbox":
        this.opened = await openOutbox(join(this.keys, "orders.outbox"));
        return;
      case "put": {
        const { subject, payload, id, headers } = step;
        return this.outbox.put(subject, payload, { ...(id && { id }), ...(headers && { headers }) });
      }
      case "start_outbox":
        return this.outbox.start(this.bridge);
      case "drain_outbox":
        return this.outbox.drain({ budgetMs: PATIENCE });
      case "close_outbox":
        return this.outbox.close({ budgetMs: step.budget_ms ?? PATIENCE });
      case "kill_server":
        return this.server.stop();
      case "start_server":
        return this.server.start();
      default:
        return this.letters(step);
    }
  }

  /**
   * @param {Step} step
   * @returns {Promise<unknown>}
   */
  async letters(step) {
    const letters = await this.bridge.deadLetters(step.stream);
    switch (step.do) {
      case "count":
        return letters.count();
      case "groups":
        return letters.list({ by: step.by });
      case "show": {
        const letter = await letters.show(step.sequence, step.decrypt ? { decrypt: join(this.keys, step.decrypt) } : {});
        return { ...letter, payload: letter.payload.toString() };
      }
      case "letters": {
        const end = Date.now() + PATIENCE;
        while ((await letters.count()) !== step.count) {
          assert(Date.now() < end, JSON.stringify(step));
          await setTimeout(10);
        }
        return;
      }
      case "park":
        return letters.park(step.filter);
      case "redrive":
        return letters.redrive({ dryRun: step.dry_run ?? false, ...(step.to && { to: step.to }) });
      default:
        throw new Error(`no such step: ${JSON.stringify(step)}`);
    }
  }

  /** @param {Step} step */
  async handle(step) {
    /** @type {Record<string, string[]>} */
    const handled = {};
    let ended = 0;
    const controller = new AbortController();
    assert.equal(step.key, "subject");
    await this.consumer(step.of).run(
      (message) => {
        const payload = message.payload.toString();
        if (step.fail_once.includes(payload) && message.attempt === 1) throw new Error("not yet");
        ended += 1;
        if (ended === step.until) controller.abort();
        if (step.give_up.includes(payload)) throw new GiveUp("never");
        (handled[message.subject] ??= []).push(payload);
      },
      { concurrency: step.concurrency, key: ({ subject }) => subject, signal: controller.signal },
    );
    return handled;
  }
}

const files = readdirSync(folder).filter((name) => name.endsWith(".json"));
assert(files.length > 5);
for (const file of files) {
  test(file.replace(".json", ""), async (t) => {
    const server = await NatsServer.for(t);
    const bridge = await connect(server.url, { reconnectPauseMaxMs: 100, publish: { noStreamWaitMs: 500 } });
    t.after(() => bridge.close({ budgetMs: 0 }).catch(() => {}));
    const scenario = /** @type {{ steps: Step[] }} */ (JSON.parse(readFileSync(join(folder, file), "utf8")));
    const keys = mkdtempSync(join(tmpdir(), "keys-"));
    const world = new World(server, bridge, keys);
    t.after(async () => {
      await Promise.all(world.connected.map((bridge) => bridge.close({ budgetMs: 0 }).catch(() => {})));
      rmSync(keys, { recursive: true });
    });
    await world.run(scenario);
  });
}
