// What an amqplib application is promised over TLS.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import amqp from 'amqplib';

import { serve } from './serve.mjs';

const path = (name) => fileURLToPath(new URL(`../certificates/${name}`, import.meta.url));
const ca = [readFileSync(path('ca.pem'))];
const identity = { cert: readFileSync(path('client.pem')), key: readFileSync(path('client.key')) };

let server;

before(async () => {
  const files = ['--tls-cert', path('server.pem'), '--tls-key', path('server.key'), '--tls-client-ca', path('ca.pem')];
  server = await serve('--listen-tls', '127.0.0.1:0', ...files, '--user', 'app:secret');
});

after(async () => {
  await server.stop();
});

const url = (login) => `amqps://${login}@${server.tls.replace('127.0.0.1', 'localhost')}/%2f`;

for (const [name, login, options] of [
  ['a password', 'app:secret', {}],
  ['its certificate', 'x:x', { credentials: amqp.credentials.external() }],
]) {
  test(`messages go through with ${name} as the login`, async () => {
    const connection = await amqp.connect(url(login), { ca, ...identity, ...options });
    const channel = await connection.createConfirmChannel();
    const { queue } = await channel.assertQueue('', { exclusive: true });
    const body = Buffer.alloc(500_000, 'nats');
    for (let n = 0; n < 10; n++) channel.sendToQueue(queue, body, { userId: 'app' });
    await channel.waitForConfirms();
    for (let n = 0; n < 10; n++) assert.deepEqual((await channel.get(queue, { noAck: true })).content, body);
    await connection.close();
  });
}

test('a client without a certificate is refused', async () => {
  await assert.rejects(amqp.connect(url('app:secret'), { ca }));
});
