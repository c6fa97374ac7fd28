// Chromium, as the system has it; and what every page of it is watched for.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const shots = process.env.PAGE_SCREENSHOTS;

export const url = process.env.PAGE_URL;

export function launch() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--headless", "--no-sandbox", "--disable-background-networking"],
  });
}

/** A tab that fails the test for an error on the console or a request to anybody else. */
export async function open(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.wrong = [];
  page.on("console", message => {
    // What a test provokes is said by the browser as well: refused changes, and a sidecar that cannot be reached.
    const provoked = /status of (401|403|409)|ERR_INTERNET_DISCONNECTED/.test(message.text());
    if (message.type() === "error" && !provoked) page.wrong.push(message.text());
  });
  page.on("pageerror", error => page.wrong.push(String(error)));
  page.on("request", request => {
    const to = request.url();
    if (!to.startsWith(url) && !to.startsWith("data:")) page.wrong.push(`asked ${to}`);
  });
  await page.goto(url);
  await page.getByText(/^(✓ Yes|✕ No|… Not yet)/).waitFor();
  return page;
}

/** What axe finds, as text; empty when it finds nothing. */
export async function accessibility(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, {
    runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
  }));
  return violations.flatMap(v => v.nodes.map(n => `${v.id}: ${v.help}: ${n.html.slice(0, 160)} ${n.failureSummary}`));
}

export async function shot(page, name) {
  if (!shots) return;
  mkdirSync(shots, { recursive: true });
  await page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
}

/** Moves the focus by the keyboard until it is on the element. */
export async function tabTo(page, id) {
  for (let steps = 0; steps < 60; steps += 1) {
    if (await page.evaluate(id => document.activeElement?.id === id, id)) return;
    await page.keyboard.press("Tab");
  }
  assert.fail(`the keyboard does not reach #${id}`);
}

export async function done(page) {
  assert.deepEqual(page.wrong, []);
  await page.context().close();
}
