// What checks of a page share: headless Chromium in three views, and what is wrong with any page.
//
// Needs playwright-core and axe-core from npm, in NODE_MODULES, and Debian's chromium, or that of CHROMIUM.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";

const require = createRequire(resolve(process.env.NODE_MODULES ?? "node_modules", "x.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const views = [
  { name: "light", width: 1280, height: 900, colorScheme: "light" },
  { name: "dark", width: 1280, height: 900, colorScheme: "dark" },
  { name: "phone", width: 375, height: 800, colorScheme: "light" },
];
export const problems = [];

// Calls `check(browser, name, settings of a context)` for each view, prints the problems and ends the process.
export async function checkViews(what, check) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
  for (const { name, width, height, colorScheme } of views) {
    await check(browser, name, { viewport: { width, height }, colorScheme });
  }
  await browser.close();
  problems.forEach((problem) => console.log(problem));
  console.log(`${what}, ${problems.length} problems`);
  process.exit(problems.length ? 1 : 0);
}

// Notes errors of a page, console messages but for those that `expected` takes, and requests that are not `allowed`.
export function watch(page, name, allowed, expected = () => false) {
  page.on("console", (message) => {
    if (message.type() === "error" && !expected(message.text())) problems.push(`${name}: console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`${name}: ${error}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith("data:") && !allowed(url)) problems.push(`${name}: request ${url}`);
  });
}

export async function checkWidth(page, name) {
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (over > 0) problems.push(`${name}: ${over} px wider than the window`);
}

// Findings that are serious or worse are problems, others are printed. The page's policy must be bypassed.
export async function checkAccess(page, name) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => axe.run());
  for (const one of found.violations) {
    const line = `${name}: axe ${one.impact}: ${one.id}: ${one.nodes.length} x ${one.nodes[0].html.slice(0, 120)}`;
    if (["serious", "critical"].includes(one.impact)) problems.push(line);
    else console.log(line);
  }
}
