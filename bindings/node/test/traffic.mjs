// An application of amqplib, unmodified, and a sidecar for it.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

import amqplib from "amqplib";

import { Sidecar } from "nats-bridge";

import { eventually } from "./server.mjs";

const KEYS = 8;

/**
 * A sidecar that is stopped after the test.
 *
 * @param {import("node:test").TestContext} t
 * @param {import("nats-bridge").SidecarOptions} options
 */
export async function start(t, options) {
  const sidecar = await Sidecar.start(options);
  t.after(() => sidecar.stop());
  return sidecar;
}

/** An application: it publishes to eight keys with confirms, and consumes and acks. */
export class Traffic {
  id = randomUUID();
  published = 0;
  count = 0;
  /** @type {number[][]} */
  taken = Array.from({ length: KEYS }, () => []);
  #over = false;
  /** @type {Promise<void>} */
  #publishing = Promise.resolve();

  /** @param {import("amqplib").ChannelModel} connection */
  constructor(connection) {
    this.connection = connection;
  }

  /** @param {string} url */
  static async start(url) {
    const traffic = new Traffic(await amqplib.connect(url));
    const channel = await traffic.connection.createChannel();
    await channel.assertExchange("orders", "topic", { durable: true });
    await channel.assertQueue("billing", { durable: true });
    await channel.bindQueue("billing", "orders", "order.#");
    await channel.prefetch(20);
    await channel.consume("billing", (message) => {
      if (message === null) return;
      if (message.properties.appId !== traffic.id) {
        // The last ack of an application before this one went with the sidecar that stopped: it comes again, and says so.
        assert(message.fields.redelivered, `${message.content.toString()} of another application came unflagged`);
        channel.ack(message);
        return;
      }
      traffic.taken[Number(message.fields.routingKey.slice("order.".length))]?.push(Number(message.content));
      traffic.count += 1;
      channel.ack(message);
    });
    traffic.#publishing = traffic.#publish();
    return traffic;
  }

  async #publish() {
    const channel = await this.connection.createConfirmChannel();
    while (!this.#over) {
      for (let number = this.published; number < this.published + KEYS; number += 1) {
        channel.publish("orders", `order.${number % KEYS}`, Buffer.from(String(number)), { persistent: true, appId: this.id });
      }
      await channel.waitForConfirms();
      this.published += KEYS;
    }
  }

  /** Waits until 40 more were published and taken. */
  async goesOn() {
    const { published, count } = this;
    await eventually(() => this.published >= published + 40 && this.count >= count + 40, "40 more", 30);
  }

  /** Ends it, and checks that each message came once, those of a key in their order. */
  async finish() {
    this.#over = true;
    await this.#publishing;
    await eventually(() => this.count >= this.published, "all are taken");
    for (const [key, taken] of this.taken.entries()) {
      const expected = Array.from({ length: this.published }, (_, number) => number).filter((n) => n % KEYS === key);
      assert.deepEqual(taken, expected);
    }
    await this.connection.close();
  }
}
