// A real nats-server with JetStream for one test: free port, own folder, stopped by its own process id.

import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, openSync, closeSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const workspace = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");

/** `$NATS_SERVER`, else the project's tools folder, else PATH. */
function findNatsServer() {
  const named = process.env["NATS_SERVER"];
  if (named) {
    return named;
  }
  const folders = [join(workspace, ".tools"), ...(process.env["PATH"] ?? "").split(delimiter)];
  const found = folders.map((folder) => join(folder, "nats-server")).find((file) => existsSync(file));
  if (found === undefined) {
    throw new Error("no nats-server: set NATS_SERVER, or run `cargo xtask tools`");
  }
  return found;
}

/**
 * Polls until `holds()`, or throws after `seconds`.
 *
 * @param {() => boolean | Promise<boolean>} holds
 * @param {string} what
 * @param {number} seconds
 */
export async function eventually(holds, what, seconds = 15) {
  const end = Date.now() + seconds * 1000;
  while (!(await holds())) {
    if (Date.now() > end) {
      throw new Error(`not within ${seconds} s: ${what}`);
    }
    await pause(20);
  }
}

/** The server. `stop` and `start` keep port and data. */
export class NatsServer {
  #folder = mkdtempSync(join(tmpdir(), "nats-bridge-test-"));
  /** @type {import("node:child_process").ChildProcess | undefined} */
  #process;
  #more;
  port = -1;

  /** @param {string[]} more arguments of the server */
  constructor(...more) {
    // Else the server takes three quarters of what the disk has left, and refuses streams that reserve more.
    const config = join(this.#folder, "server.conf");
    writeFileSync(config, "jetstream { max_file_store: 64GB }");
    this.#more = more.includes("--config") ? more : ["--config", config, ...more];
  }

  /**
   * Starts one that is stopped, and its folder removed, after the test.
   *
   * @param {import("node:test").TestContext} test
   * @param {string[]} more arguments of the server
   */
  static async for(test, ...more) {
    const server = new NatsServer(...more);
    test.after(() => server.remove());
    await server.start();
    return server;
  }

  get url() {
    return `nats://127.0.0.1:${this.port}`;
  }

  /** Of its process, while it runs. */
  get pid() {
    const pid = this.#process?.pid;
    if (pid === undefined) {
      throw new Error("it does not run");
    }
    return pid;
  }

  async start() {
    const ports = join(this.#folder, "ports");
    rmSync(ports, { recursive: true, force: true });
    mkdirSync(ports);
    const log = openSync(join(this.#folder, "log"), "a");
    const server = spawn(
      findNatsServer(),
      [
        ...["--addr", "127.0.0.1", "--port", String(this.port), "--jetstream"],
        ...["--store_dir", join(this.#folder, "store"), "--ports_file_dir", ports],
        ...this.#more,
      ],
      { stdio: ["ignore", log, log] },
    );
    closeSync(log);
    this.#process = server;
    await eventually(() => {
      if (server.exitCode !== null) {
        throw new Error(`nats-server ended: ${readFileSync(join(this.#folder, "log"), "utf8")}`);
      }
      return this.#readPort(ports);
    }, "nats-server is up");
  }

  /** @param {string} ports */
  #readPort(ports) {
    for (const file of readdirSync(ports)) {
      try {
        const read = /** @type {{ nats: string[] }} */ (JSON.parse(readFileSync(join(ports, file), "utf8")));
        this.port = Number(read.nats[0]?.split(":").pop());
        return true;
      } catch {
        return false; // still being written
      }
    }
    return false;
  }

  /** Kills it, as a crash would. */
  async stop() {
    const server = this.#process;
    this.#process = undefined;
    if (server !== undefined && server.exitCode === null && server.signalCode === null) {
      const gone = new Promise((resolve) => server.once("exit", resolve));
      server.kill("SIGKILL");
      await gone;
    }
  }

  async remove() {
    await this.stop();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
