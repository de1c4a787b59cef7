// Uses the console of a server in headless Chromium: node bench/check_console.mjs URL INDEX ID [FOLDER]
//
// Searches by an id, by the vector of one number too few and by a neighbour. Fails on a console error, a request to
// another host, a finding of axe-core that is serious or worse, or a page wider than its window. Screenshots go to
// FOLDER. Needs playwright-core and axe-core from npm, and Debian's chromium.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";

const require = createRequire(resolve(process.env.NODE_MODULES ?? "node_modules", "x.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [url, index, id, folder] = process.argv.slice(2);
const problems = [];

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const views = [
  { name: "light", width: 1280, height: 900, colorScheme: "light" },
  { name: "dark", width: 1280, height: 900, colorScheme: "dark" },
  { name: "phone", width: 375, height: 800, colorScheme: "light" },
];
for (const { name, width, height, colorScheme } of views) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme });
  const page = await context.newPage();
  const expect = (holds, what) => holds || problems.push(`${name}: ${what}`);
  let refusals = 0;
  page.on("console", (message) => {
    if (message.type() !== "error") return;
    // The browser itself reports the refusal that is asked for below.
    if (/status of 422/.test(message.text())) refusals += 1;
    else problems.push(`${name}: console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`${name}: ${error}`));
  page.on("request", (request) => {
    const asked = request.url();
    if (!asked.startsWith("data:") && new URL(asked).host !== new URL(url).host) problems.push(`${name}: request ${asked}`);
  });
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
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  expect(over <= 0, `${over} px wider than the window`);
  await context.close();
  // The policy keeps out foreign scripts, so that axe-core needs a page without it.
  const open = await browser.newContext({ viewport: { width, height }, colorScheme, bypassCSP: true });
  const checked = await open.newPage();
  await checked.goto(url);
  await checked.getByLabel("Vector or id").fill(id);
  await checked.waitForFunction(() => document.querySelectorAll("#facts dt").length > 0);
  await checked.getByLabel("Index", { exact: true }).selectOption(index);
  await checked.waitForFunction(() => document.querySelectorAll("#rungs tbody tr").length > 0);
  await checked.getByRole("button", { name: "Search", exact: true }).click();
  await checked.waitForFunction(() => document.querySelectorAll("#results tbody tr").length > 0);
  await checked.evaluate(axe);
  const found = await checked.evaluate(() => axe.run());
  for (const one of found.violations) {
    const line = `${name}: axe ${one.impact}: ${one.id}: ${one.nodes.length} x ${one.nodes[0].html.slice(0, 120)}`;
    if (["serious", "critical"].includes(one.impact)) problems.push(line);
    else console.log(line);
  }
  if (folder) await checked.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  await open.close();
}
await browser.close();
problems.forEach((problem) => console.log(problem));
console.log(`${url}: ${problems.length} problems`);
process.exit(problems.length ? 1 : 0);
