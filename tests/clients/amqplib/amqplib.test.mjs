// What an amqplib application is promised.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { after, afterEach, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import amqp from 'amqplib';

import { serve } from './serve.mjs';

let server;
let connections = [];

before(async () => {
  server = await serve();
});

after(async () => {
  await server.stop();
});

afterEach(async () => {
  await Promise.all(connections.map((connection) => connection.close().catch(() => {})));
  connections = [];
});

async function connect() {
  const connection = await amqp.connect(server.url);
  // An error that a test expects arrives through the call that caused it.
  connection.on('error', () => {});
  connections.push(connection);
  return connection;
}

const unique = () => `test.${randomUUID().slice(0, 12)}`;

/** Polls until `condition` holds, for at most 15 s. */
async function eventually(condition) {
  for (const limit = Date.now() + 15_000; !(await condition()); await sleep(10)) {
    assert.ok(Date.now() < limit, `not within 15 s: ${condition}`);
  }
}

test('a thousand confirmed messages come out in order and once', async () => {
  const queue = unique();
  const publisher = await (await connect()).createConfirmChannel();
  await publisher.assertQueue(queue, { durable: true });
  for (let number = 0; number < 1000; number += 1) {
    publisher.sendToQueue(queue, Buffer.from(String(number)), { persistent: true, messageId: `m-${number}` });
  }
  await publisher.waitForConfirms();
  const consumer = await (await connect()).createChannel();
  await consumer.prefetch(100);
  const received = [];
  await consumer.consume(queue, (message) => {
    received.push(Number(message.content));
    assert.equal(message.properties.messageId, `m-${message.content}`);
    assert.equal(message.fields.redelivered, false);
    consumer.ack(message);
  });
  await eventually(() => received.length >= 1000);
  assert.deepEqual(received, Array.from({ length: 1000 }, (_, number) => number));
  await consumer.close();
  assert.equal((await publisher.checkQueue(queue)).messageCount, 0);
});

test('a confirm callback is called for each message', async () => {
  const channel = await (await connect()).createConfirmChannel();
  const { queue } = await channel.assertQueue('', { exclusive: true });
  const confirmed = [];
  for (let number = 0; number < 50; number += 1) {
    channel.sendToQueue(queue, Buffer.from('x'), {}, (error) => confirmed.push([number, error]));
  }
  await channel.waitForConfirms();
  assert.deepEqual(confirmed.map(([number]) => number).sort((a, b) => a - b), Array.from({ length: 50 }, (_, n) => n));
  assert.ok(confirmed.every(([, error]) => error === null));
});

test('a mandatory message without a queue is returned', async () => {
  const channel = await (await connect()).createConfirmChannel();
  const returned = once(channel, 'return');
  channel.publish('', unique(), Buffer.from('to nobody'), { mandatory: true });
  const [message] = await returned;
  assert.equal(message.content.toString(), 'to nobody');
  assert.equal(message.fields.replyCode, 312);
});

test('headers keep their types', async () => {
  const channel = await (await connect()).createConfirmChannel();
  const { queue } = await channel.assertQueue('', { exclusive: true });
  const headers = {
    text: 'größer',
    yes: true,
    small: 7,
    negative: -70_000,
    large: 2 ** 40,
    fraction: 0.5,
    bytes: Buffer.from([0, 255]),
    list: [1, 'two', { three: 3 }],
    nothing: null,
  };
  channel.sendToQueue(queue, Buffer.from('{}'), { headers, contentType: 'application/json', type: 'order' });
  await channel.waitForConfirms();
  const message = await channel.get(queue, { noAck: true });
  assert.deepEqual({ ...message.properties.headers }, headers);
  assert.equal(message.properties.contentType, 'application/json');
  assert.equal(message.properties.type, 'order');
});

test('a direct exchange routes by key and a fanout exchange to every queue', async () => {
  const channel = await (await connect()).createConfirmChannel();
  const [direct, fanout] = [unique(), unique()];
  await channel.assertExchange(direct, 'direct', { durable: true });
  await channel.assertExchange(fanout, 'fanout', { durable: false });
  const queues = [];
  for (const key of ['red', 'green']) {
    const { queue } = await channel.assertQueue('', { exclusive: true });
    await channel.bindQueue(queue, direct, key);
    await channel.bindQueue(queue, fanout, '');
    queues.push(queue);
  }
  channel.publish(direct, 'red', Buffer.from('1'));
  channel.publish(direct, 'blue', Buffer.from('2'));
  channel.publish(fanout, 'any', Buffer.from('3'));
  await channel.waitForConfirms();
  const counts = await Promise.all(queues.map(async (queue) => (await channel.checkQueue(queue)).messageCount));
  assert.deepEqual(counts, [2, 1]);
});

test('a nacked message comes again flagged', async () => {
  const channel = await (await connect()).createChannel();
  const { queue } = await channel.assertQueue('', { exclusive: true });
  const seen = [];
  await channel.consume(queue, (message) => {
    seen.push(message.fields.redelivered);
    if (message.fields.redelivered) channel.ack(message);
    else channel.nack(message);
  });
  channel.sendToQueue(queue, Buffer.from('again'));
  await eventually(() => seen.length === 2);
  assert.deepEqual(seen, [false, true]);
});

test('get answers false on an empty queue', async () => {
  const channel = await (await connect()).createChannel();
  const { queue } = await channel.assertQueue('', { exclusive: true });
  assert.equal(await channel.get(queue), false);
});

test('a cancelled consumer gets nothing more and its messages stay', async () => {
  const channel = await (await connect()).createConfirmChannel();
  const { queue } = await channel.assertQueue(unique(), { durable: true });
  const received = [];
  const { consumerTag } = await channel.consume(queue, (message) => received.push(message));
  await channel.cancel(consumerTag);
  channel.sendToQueue(queue, Buffer.from('later'));
  await channel.waitForConfirms();
  assert.equal((await channel.checkQueue(queue)).messageCount, 1);
  assert.equal(received.length, 0);
  assert.equal((await channel.deleteQueue(queue)).messageCount, 1);
});

test('a channel error closes the channel and not the connection', async () => {
  const connection = await connect();
  const queue = unique();
  await (await connection.createChannel()).assertQueue(queue, { durable: true });
  const broken = await connection.createChannel();
  broken.on('error', () => {});
  await assert.rejects(broken.assertQueue(queue, { durable: false }), { code: 406 });
  const sound = await connection.createChannel();
  assert.equal((await sound.checkQueue(queue)).messageCount, 0);
});

test('unacked messages come again flagged when their channel is gone', async () => {
  const holder = await (await connect()).createConfirmChannel();
  const queue = unique();
  await holder.assertQueue(queue, { durable: true });
  for (const text of ['a', 'b', 'c']) holder.sendToQueue(queue, Buffer.from(text), { persistent: true });
  await holder.waitForConfirms();
  const held = [];
  await holder.consume(queue, (message) => held.push(message));
  await eventually(() => held.length === 3);
  holder.ack(held[0]);
  await holder.close();
  const channel = await (await connect()).createChannel();
  const again = [];
  await channel.consume(queue, (message) => {
    again.push([message.content.toString(), message.fields.redelivered]);
    channel.ack(message);
  });
  await eventually(() => again.length >= 2);
  assert.deepEqual(again.sort(), [['b', true], ['c', true]]);
});
