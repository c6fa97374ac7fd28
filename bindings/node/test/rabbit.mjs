// A real RabbitMQ node for one test file, which ends with it; a vhost of its own for each test.

import { spawn } from "node:child_process";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const workspace = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");

/** The node. Its program is one of ours (`test-support`), built by `cargo build -p test-support`. */
export class RabbitMq {
  #process;
  #vhosts = 0;
  #url = "";
  #management = "";

  constructor() {
    const bridge = process.env["NATS_BRIDGE"];
    const programs = bridge ? dirname(bridge) : join(workspace, "target", "debug");
    this.#process = spawn(join(programs, "rabbitmq-node"), { stdio: ["pipe", "pipe", "inherit"] });
  }

  static async start() {
    const node = new RabbitMq();
    for await (const line of createInterface(node.#process.stdout)) {
      const { url, management } = /** @type {{ url: string, management: string }} */ (JSON.parse(line));
      node.#url = url.replace(/\/%2f$/i, "");
      node.#management = management;
      return node;
    }
    throw new Error("RabbitMQ did not start");
  }

  /** The management API, with user and password. */
  get management() {
    return this.#management.replace("//", "//guest:guest@");
  }

  /** The URL of a vhost that nothing is in. */
  async freshVhost() {
    this.#vhosts += 1;
    const vhost = `test-${this.#vhosts}`;
    await this.#put(`/api/vhosts/${vhost}`, {});
    await this.#put(`/api/permissions/${vhost}/guest`, { configure: ".*", write: ".*", read: ".*" });
    return `${this.#url}/${vhost}`;
  }

  /** @param {string} path @param {object} what */
  async #put(path, what) {
    const answer = await fetch(this.#management + path, {
      method: "PUT",
      headers: { authorization: `Basic ${btoa("guest:guest")}`, "content-type": "application/json" },
      body: JSON.stringify(what),
    });
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  }

  async stop() {
    const gone = new Promise((resolve) => this.#process.once("exit", resolve));
    this.#process.stdin.end();
    await gone;
  }
}
