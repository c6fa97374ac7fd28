// The page of a sidecar without a token, opened on its own machine: it may change what the command line may.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { accessibility, done, launch, open, shot, tabTo } from "./browser.mjs";

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser?.close(); });

const answer = page => page.locator("#answer");
const said = (page, text) => page.waitForFunction(
  text => document.getElementById("done").textContent.includes(text), text);

test("an operator goes up and back by the keyboard alone, and is told why not", async () => {
  const page = await open(browser);
  assert.match(await page.locator("#where").textContent(), /^phase observe, weight 0 %/);

  // Escape leaves everything as it is, and the focus returns.
  await tabTo(page, "shadow");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "why");
  await page.keyboard.press("Escape");
  assert.equal(await page.evaluate(() => document.activeElement.id), "shadow");
  await page.keyboard.press("Enter");
  await page.keyboard.type("from the keyboard");
  await page.keyboard.press("Enter");
  await said(page, "phase shadow");

  await page.getByText("Go on with nats-bridge weight 5").waitFor({ timeout: 60_000 });
  assert.equal(await answer(page).textContent(), "✓ Yes");
  await tabTo(page, "percent");
  await page.keyboard.press("Control+A");
  await page.keyboard.type("25");
  await tabTo(page, "set");
  await page.keyboard.press("Enter");
  assert.equal(await page.locator("#confirm-no").isVisible(), false, "the gate has nothing against it");
  await tabTo(page, "go");
  await page.keyboard.press("Enter");
  await said(page, "weight 25 %");

  // More weight at once is against the gate, which has seen nothing of this weight yet.
  await page.getByText("… Not yet").waitFor();
  assert.ok(await page.locator("#reasons li").filter({ hasText: "too_soon" }).isVisible());
  await page.locator("#percent").fill("50");
  await page.locator("#set").click();
  assert.ok(await page.getByText("The gate says no.").isVisible());
  await page.locator("#go").click();
  await page.getByText("Refused: the gate says no:").waitFor();
  await tabTo(page, "force");
  await page.keyboard.press("Space");
  await tabTo(page, "go");
  await page.keyboard.press("Enter");
  await said(page, "weight 50 %");

  await tabTo(page, "rollback");
  await page.keyboard.press("Enter");
  await page.keyboard.type("enough");
  await page.keyboard.press("Enter");
  await said(page, "weight 0 %");
  await page.waitForFunction(() => document.querySelectorAll("#changes tr").length >= 5);
  const changes = await page.locator("#changes tr").allTextContents();
  assert.match(changes[0], /shadow0 %page.*enough/);
  assert.match(changes[1], /canary50 %.*against the gate's no/);
  assert.match(changes[2], /canary25 %/);
  await done(page);
});

test("it says what is going on in both brokers, as tables and as charts with a text", async () => {
  const page = await open(browser);
  await page.waitForFunction(() => document.querySelectorAll("#charts path.rabbit").length === 3);
  const labels = await page.locator("#charts svg").evaluateAll(all => all.map(svg => [svg.getAttribute("role"), svg.getAttribute("aria-label")]));
  assert.equal(labels.length, 4);
  for (const [role, label] of labels) {
    assert.equal(role, "img");
    assert.match(label, /: now .*highest on the scale/);
  }
  assert.match(labels[0][1], /^Published in a second: now RabbitMQ [\d.,]+\/s, JetStream [\d.,]+\/s/);
  const sides = await page.locator("#sides tr").allTextContents();
  assert.match(sides[0], /^RabbitMQyes/);
  assert.match(sides[1], /^JetStreamyes/);
  const queue = page.locator("#queues tr").filter({ hasText: "orders.all" });
  const match = Number((await queue.locator("td").nth(5).textContent()).replaceAll(",", ""));
  assert.ok(match > 0, "what was compared is shown");
  await page.locator("#only").check();
  assert.equal(await page.locator("#queues tr").count(), 0, "nothing differs");
  await page.locator("summary").click();
  assert.ok(await page.locator("#minute tr").count() > 0);
  await done(page);
});

test("a sidecar that does not answer is said, and what is shown is called old", async () => {
  const page = await open(browser);
  assert.equal(await page.locator("#away").isVisible(), false);
  await page.context().setOffline(true);
  await page.getByRole("alert").filter({ hasText: "does not answer" }).waitFor();
  await page.context().setOffline(false);
  await page.locator("#away").waitFor({ state: "hidden" });
  await done(page);
});

for (const [name, options] of [
  ["light", { colorScheme: "light" }],
  ["dark", { colorScheme: "dark" }],
  ["narrow", { colorScheme: "light", viewport: { width: 320, height: 640 } }],
  ["forced-colors", { forcedColors: "active" }],
]) {
  test(`axe finds nothing against it: ${name}`, async () => {
    const page = await open(browser, options);
    await page.waitForFunction(() => document.querySelectorAll("#charts path.rabbit").length === 3);
    await shot(page, name);
    assert.deepEqual(await accessibility(page), []);
    const width = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(width[0] <= width[1], `it scrolls sideways: ${width}`);
    await page.locator("#set").click();
    await shot(page, `${name}-dialog`);
    assert.deepEqual(await accessibility(page), [], "with the dialog open");
    await done(page);
  });
}
