// One `nats-bridge serve --embedded` for a test file, or the broker that AMQP_URL names.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../../..', import.meta.url));

/** Starts a server, with more `options` if given; `stop` ends it in order and removes its directory. */
export async function serve(...options) {
  if (process.env.AMQP_URL && options.length === 0) {
    return { url: process.env.AMQP_URL, stop: async () => {} };
  }
  const dir = mkdtempSync(join(tmpdir(), 'nats-bridge-amqplib-'));
  const ready = join(dir, 'ready.json');
  const log = openSync(join(dir, 'serve.log'), 'a');
  const binary = process.env.NATS_BRIDGE ?? join(root, 'target/debug/nats-bridge');
  const args = ['serve', '--embedded', join(dir, 'data'), '--listen', '127.0.0.1:0', '--ready-file', ready, ...options];
  const child = spawn(binary, args, { stdio: ['ignore', log, log] });
  const ended = once(child, 'exit');
  closeSync(log);
  const said = () => readFileSync(join(dir, 'serve.log'), 'utf8').slice(-4000);
  for (const limit = Date.now() + 30_000; !existsSync(ready); await sleep(20)) {
    if (child.exitCode !== null) throw new Error(`serve ended: ${said()}`);
    if (Date.now() > limit) throw new Error(`serve is not ready after 30 s: ${said()}`);
  }
  const { listen, listen_tls } = JSON.parse(readFileSync(ready, 'utf8'));
  return {
    url: `amqp://guest:guest@${listen}/%2f`,
    tls: listen_tls,
    stop: async () => {
      child.kill('SIGTERM');
      const [code] = await ended;
      if (code !== 0) throw new Error(`serve ended with ${code}: ${said()}`);
      rmSync(dir, { recursive: true });
    },
  };
}
