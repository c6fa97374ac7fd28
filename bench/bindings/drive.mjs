// One round of one Node client: publishes, or consumes and acks, and prints seconds and CPU seconds as JSON.
//
// usage: node drive.mjs CLIENT WORK URL MESSAGES SIZE WINDOW
import assert from "node:assert/strict";

const [client, work, url = ""] = process.argv.slice(2);
const [messages = 0, size = 0, window = 0] = process.argv.slice(5).map(Number);
const body = Buffer.alloc(size, "x");
const queue = "bench";
// How many windows a call that publishes many is given.
const given = 10;

/** The wall clock, and the CPU time of this process. */
function clock() {
  const [wall, cpu] = [performance.now(), process.cpuUsage()];
  return () => {
    const { user, system } = process.cpuUsage(cpu);
    return { seconds: (performance.now() - wall) / 1e3, cpu_seconds: (user + system) / 1e6 };
  };
}

const ids = () => Array.from({ length: messages }, (_, n) => `bench-message-${String(n).padStart(22, "0")}`);

const drives = {
  async "ours many"() {
    const { connect } = await import("nats-bridge");
    // The window slides over what is given at once.
    const bridge = await connect(url, { publish: { maxInFlight: window } });
    const took = clock();
    const named = ids();
    for (let begin = 0; begin < messages; begin += given * window) {
      const some = named.slice(begin, begin + given * window).map((id) => ({ subject: "bench.x", payload: body, id }));
      assert((await bridge.publishMany(some)).every(({ landed }) => landed === "yes"));
    }
    const found = took();
    await bridge.close();
    return found;
  },
  async "ours consume"() {
    const { connect } = await import("nats-bridge");
    const bridge = await connect(url);
    const consumer = await bridge.consume("BENCH", "bench", { maxMessages: window });
    const took = clock();
    for (let n = 1; n <= messages; n++) {
      const delivery = await consumer.next();
      assert.equal(delivery?.payload.length, size);
      // The last one is confirmed: all acks before it have been taken then.
      await delivery?.ack({ confirmed: n === messages });
    }
    const found = took();
    await consumer.drain();
    await bridge.close();
    return found;
  },
  async "nats.js many"() {
    const { connect } = await import("@nats-io/transport-node");
    const { jetstream } = await import("@nats-io/jetstream");
    const connection = await connect({ servers: url });
    const js = jetstream(connection);
    const took = clock();
    const named = ids();
    for (let begin = 0; begin < messages; begin += window) {
      await Promise.all(named.slice(begin, begin + window).map((msgID) => js.publish("bench.x", body, { msgID })));
    }
    const found = took();
    await connection.close();
    return found;
  },
  async "nats.js consume"() {
    const { connect } = await import("@nats-io/transport-node");
    const { jetstream, jetstreamManager } = await import("@nats-io/jetstream");
    const connection = await connect({ servers: url });
    const manager = await jetstreamManager(connection);
    await manager.consumers.add("BENCH", { durable_name: "bench", ack_policy: "explicit", max_ack_pending: -1 });
    const consumer = await jetstream(connection).consumers.get("BENCH", "bench");
    const took = clock();
    const taken = await consumer.consume({ max_messages: window });
    let n = 0;
    for await (const message of taken) {
      n += 1;
      assert.equal(message.data.length, size);
      if (n === messages) {
        await message.ackAck();
        break;
      }
      message.ack();
    }
    const found = took();
    await taken.close();
    await connection.close();
    return found;
  },
  async "amqplib many"() {
    const { default: amqplib } = await import("amqplib");
    const connection = await amqplib.connect(url);
    const channel = await connection.createConfirmChannel();
    await channel.assertQueue(queue, { durable: true });
    const took = clock();
    for (let begin = 0; begin < messages; begin += window) {
      for (let n = begin; n < Math.min(begin + window, messages); n++) {
        channel.sendToQueue(queue, body, { persistent: true });
      }
      await channel.waitForConfirms();
    }
    const found = took();
    await connection.close();
    return found;
  },
  async "amqplib consume"() {
    const { default: amqplib } = await import("amqplib");
    const connection = await amqplib.connect(url);
    const channel = await connection.createChannel();
    await channel.prefetch(window);
    const took = clock();
    let n = 0;
    await new Promise((resolve, reject) => {
      channel
        .consume(queue, (message) => {
          assert.equal(message.content.length, size);
          channel.ack(message);
          n += 1;
          if (n === messages) resolve();
        })
        .catch(reject);
    });
    // Its answer comes behind the acks.
    await channel.checkQueue(queue);
    const found = took();
    await connection.close();
    return found;
  },
};

console.log(JSON.stringify(await drives[`${client} ${work}`]()));
