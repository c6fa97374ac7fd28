// The page of a sidecar that was started with --http-token-file: it shows, and changes only for whoever gives the token.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { accessibility, done, launch, open } from "./browser.mjs";

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser?.close(); });

test("without the token it is read only, and with it a change is made", async () => {
  const page = await open(browser);
  await page.getByText("Read only: changes need the token of this sidecar.").waitFor();
  for (const id of ["set", "shadow", "observe", "rollback", "percent"]) assert.ok(await page.locator(`#${id}`).isDisabled(), id);
  assert.deepEqual(await accessibility(page), []);
  const refused = await page.evaluate(() => fetch("shadow", { method: "POST" }).then(answer => answer.status));
  assert.equal(refused, 401);

  await page.getByLabel("Token of this sidecar").fill("not it");
  await page.getByRole("button", { name: "Use the token" }).click();
  await page.getByText("That is not the token of this sidecar.").waitFor();
  await page.getByLabel("Token of this sidecar").fill(process.env.PAGE_TOKEN);
  await page.keyboard.press("Enter");
  await page.getByText("The token is right").waitFor();
  await page.locator("#shadow").click();
  await page.locator("#go").click();
  await page.waitForFunction(() => document.getElementById("done").textContent.includes("phase shadow"));
  assert.equal(await page.locator("#give-token").isVisible(), false);

  // It is kept nowhere.
  await page.reload();
  await page.getByText("Read only").waitFor();
  await done(page);
});
