// Uses the console of a server in headless Chromium: node bench/check_console.mjs URL INDEX ID [FOLDER]
//
// Searches by an id, by the vector of one number too few and by a neighbour. Fails on a console error, a request to
// another host, a finding of axe-core that is serious or worse, or a page wider than its window. Screenshots go to
// FOLDER. Needs what browser.mjs does.
import { checkAccess, checkViews, checkWidth, problems, watch } from "./browser.mjs";

const [url, index, id, folder] = process.argv.slice(2);

await checkViews(url, async (browser, name, settings) => {
  const context = await browser.newContext(settings);
  const page = await context.newPage();
  const expect = (holds, what) => holds || problems.push(`${name}: ${what}`);
  let refusals = 0;
  // The browser itself reports the refusal that is asked for below.
  const refused = (text) => /status of 422/.test(text) && (refusals += 1);
  watch(page, name, (asked) => new URL(asked).host === new URL(url).host, refused);
  const search = async () => {
    const answered = page.waitForResponse((response) => response.url().endsWith("/search"));
    await page.getByRole("button", { name: "Search", exact: true }).click();
    await answered;
  };
  await page.goto(url);
  await page.waitForFunction((wanted) => [...document.getElementById("index").options].some((one) => one.value === wanted), index);
  await page.getByLabel("Index", { exact: true }).selectOption(index);
  await page.waitForFunction(() => document.querySelectorAll("#rungs tbody tr").length > 0);
  await page.getByLabel("Vector or id").fill(id);
  await page.getByLabel("Results").fill("5");
  await search();
  await page.waitForFunction(() => document.querySelectorAll("#results tbody tr").length === 5);
  expect(/^5 neighbours in /.test(await page.locator("#status").textContent()), "no status");
  const best = page.locator("#results tbody tr").nth(1).getByRole("button");
  const neighbour = await best.textContent();
  await best.click();
  await page.waitForFunction((wanted) => document.getElementById("query").value === wanted, neighbour);
  await page.getByLabel("Search", { exact: true }).selectOption({ index: 1 });
  await search();
  await page.waitForFunction(() => document.getElementById("status").textContent.includes("neighbours"));
  await page.getByLabel("Vector or id").fill("0.5, 0.25");
  await search();
  await page.waitForFunction(() => document.getElementById("status").textContent.startsWith("queries must be"));
  expect(refusals === 1, `${refusals} refusals`);
  await checkWidth(page, name);
  await context.close();
  // The policy keeps out foreign scripts, so that axe-core needs a page without it.
  const open = await browser.newContext({ ...settings, bypassCSP: true });
  const checked = await open.newPage();
  await checked.goto(url);
  await checked.getByLabel("Vector or id").fill(id);
  await checked.waitForFunction(() => document.querySelectorAll("#facts dt").length > 0);
  await checked.getByLabel("Index", { exact: true }).selectOption(index);
  await checked.waitForFunction(() => document.querySelectorAll("#rungs tbody tr").length > 0);
  await checked.getByRole("button", { name: "Search", exact: true }).click();
  await checked.waitForFunction(() => document.querySelectorAll("#results tbody tr").length > 0);
  await checkAccess(checked, name);
  if (folder) await checked.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  await open.close();
});
