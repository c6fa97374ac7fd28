// amqplib, unmodified, on the AMQP listener inside the process.

import assert from "node:assert/strict";
import { test } from "node:test";

import amqplib from "amqplib";

import { AmqpListener, BridgeError } from "nats-bridge";

import { run } from "./process.mjs";
import { NatsServer } from "./server.mjs";

/**
 * A listener that is stopped after the test.
 *
 * @param {import("node:test").TestContext} t
 * @param {import("nats-bridge").AmqpListenerOptions} options
 */
async function listen(t, options) {
  const listener = await AmqpListener.start(options);
  t.after(() => listener.stop());
  return listener;
}

/**
 * Publishes to the durable queue `orders` with confirms.
 *
 * @param {string} url
 * @param {string[]} bodies
 */
async function publish(url, ...bodies) {
  const connection = await amqplib.connect(url);
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue("orders", { durable: true });
  for (const body of bodies) {
    channel.sendToQueue("orders", Buffer.from(body), { persistent: true });
  }
  await channel.waitForConfirms();
  await connection.close();
}

/**
 * Consumes `count` messages of `orders` and acks them.
 *
 * @param {string} url
 * @param {number} count
 */
async function take(url, count) {
  const connection = await amqplib.connect(url);
  const channel = await connection.createChannel();
  await channel.prefetch(10);
  /** @type {string[]} */
  const taken = [];
  await new Promise((/** @type {(value: void) => void} */ done, refuse) => {
    channel
      .consume("orders", (message) => {
        if (message === null) return;
        taken.push(message.content.toString());
        channel.ack(message);
        if (taken.length === count) done();
      })
      .catch(refuse);
  });
  await channel.close();
  await connection.close();
  return taken;
}

test("amqplib publishes and consumes in the same process", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const listener = await AmqpListener.start({ nats });
  const bodies = Array.from({ length: 50 }, (_, n) => `order ${n}`);
  await publish(listener.url, ...bodies);
  assert.deepEqual(await take(listener.url, 50), bodies);
  assert.equal(listener.state, "running");
  await listener[Symbol.asyncDispose]();
  assert.equal(listener.state, "stopped");
  await assert.rejects(amqplib.connect(listener.url));
});

test("what was stored is there for the next listener", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const first = await listen(t, { nats });
  await publish(first.url, "kept");
  await first.stop();
  await first.stop();
  const second = await listen(t, { nats });
  assert.deepEqual(await take(second.url, 1), ["kept"]);
});

test("a password that is none is refused and not shown", async () => {
  const users = { alice: 4711001 };
  // @ts-expect-error a password is a string
  await assert.rejects(AmqpListener.start({ users }), (error) => {
    assert(error instanceof TypeError && /users\.alice/.test(error.message) && !error.message.includes("4711001"));
    return true;
  });
});

test("users, vhosts and address are those that were given", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const listener = await listen(t, { nats, users: { app: "s/e:c@ret", ops: "x" }, vhosts: ["shop", "/"] });
  const { host, port } = listener.address;
  assert.deepEqual([host, listener.tlsAddress, listener.trouble], ["127.0.0.1", undefined, undefined]);
  assert.equal(listener.url, `amqp://app:s%2Fe%3Ac%40ret@127.0.0.1:${port}/shop`);
  await publish(listener.url, "one");
  await publish(`amqp://ops:x@127.0.0.1:${port}/%2F`, "two");
  await assert.rejects(amqplib.connect(`amqp://guest:guest@127.0.0.1:${port}/shop`), /403/);
  await assert.rejects(amqplib.connect(`amqp://ops:x@127.0.0.1:${port}/nowhere`));
});

test("a client that stays is told with 320 and waited for", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  const listener = await listen(t, { nats });
  const connection = await amqplib.connect(listener.url);
  connection.on("error", () => {});
  const closed = new Promise((resolve) => connection.once("close", resolve));
  assert.equal(listener.connections, 1);
  const waits = listener.wait();
  await listener.stop();
  assert.match(String(await closed), /320/);
  await waits;
  assert.equal(listener.connections, 0);
});

test("what is wrong is a typed error that names the option", async (t) => {
  const { url: nats } = await NatsServer.for(t);
  await assert.rejects(AmqpListener.start({ nats, listen: "0.0.0.0:0" }), (error) => {
    assert(error instanceof BridgeError);
    assert.deepEqual([error.code, error.landed, error.context["field"]], ["config", "no", "users"]);
    return true;
  });
  await assert.rejects(AmqpListener.start({ nats, listen: "nonsense" }), { code: "config", message: /listen nonsense/ });
  await assert.rejects(AmqpListener.start({ nats, listenTls: "127.0.0.1:0" }), { code: "config", message: /tlsKey/ });
  const nothing = { listenTls: "127.0.0.1:0", tlsCert: "/nothing.pem", tlsKey: "/nothing.pem" };
  await assert.rejects(AmqpListener.start({ nats, ...nothing }), { code: "config", message: /nothing\.pem/ });
  const optional = AmqpListener.start({ nats, ...nothing, tlsClientOptional: true });
  await assert.rejects(optional, { code: "config", message: /tlsClientOptional.*tlsClientCa/ });
  // @ts-expect-error there is no such option
  await assert.rejects(AmqpListener.start({ nats, lisen: "127.0.0.1:0" }), { name: "TypeError", message: /'lisen'/ });
  // @ts-expect-error vhosts is an array
  await assert.rejects(AmqpListener.start({ nats, vhosts: 7 }), { name: "TypeError" });
  const gone = { nats: "nats://127.0.0.1:1", connect: { connectTimeoutMs: 500 } };
  await assert.rejects(AmqpListener.start(gone), { code: "unreachable" });
  const { address } = await listen(t, { nats });
  const taken = AmqpListener.start({ nats, listen: `127.0.0.1:${address.port}` });
  await assert.rejects(taken, { code: "conflict", message: /listen 127\.0\.0\.1/ });
});

test("a listener alone does not keep the process running, a wait does, and exit is clean", async (t) => {
  const { url } = await NatsServer.for(t);
  const start = `import { AmqpListener } from "nats-bridge";
     const listener = await AmqpListener.start({ nats: process.argv[1] });
     console.log(listener.state);`;
  assert.deepEqual(await run(start, url), { end: 0, out: "running\n" });
  const waits = `${start}
     setTimeout(() => listener.stop(), 100).unref();
     await listener.wait();
     console.log(listener.state);`;
  assert.deepEqual(await run(waits, url), { end: 0, out: "running\nstopped\n" });
  assert.deepEqual(await run(`${start} listener.wait(); process.exit(3);`, url), { end: 3, out: "running\n" });
});
