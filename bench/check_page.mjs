// Opens a report in headless Chromium as a file: node bench/check_page.mjs REPORT.html [FOLDER]
//
// Fails on a console error, a network request, a finding of axe-core that is serious or worse, a page wider than its
// window, or more than 6 MB. Screenshots of light, dark, phone and print go to FOLDER. Needs playwright-core and
// axe-core from npm, and Debian's chromium.
import { createRequire } from "node:module";
import { readFileSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(resolve(process.env.NODE_MODULES ?? "node_modules", "x.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [report, folder] = process.argv.slice(2);
const problems = [];
const bytes = statSync(report).size;
if (bytes >= 6e6) problems.push(`${bytes} bytes`);

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const views = [
  { name: "light", width: 1280, height: 900, colorScheme: "light" },
  { name: "dark", width: 1280, height: 900, colorScheme: "dark" },
  { name: "phone", width: 375, height: 800, colorScheme: "light" },
];
for (const { name, width, height, colorScheme } of views) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, bypassCSP: true });
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && problems.push(`${name}: console: ${message.text()}`));
  page.on("pageerror", (error) => problems.push(`${name}: ${error}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith("data:") && url !== pathToFileURL(resolve(report)).href) problems.push(`${name}: request ${url}`);
  });
  await page.goto(pathToFileURL(resolve(report)).href);
  await page.waitForFunction(() => [...document.querySelectorAll(".plot")].every((plot) => plot.querySelector("svg")));
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (over > 0) problems.push(`${name}: ${over} px wider than the window`);
  await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));
  await page.evaluate(axe);
  const found = await page.evaluate(() => axe.run());
  for (const one of found.violations) {
    const line = `${name}: axe ${one.impact}: ${one.id}: ${one.nodes.length} x ${one.nodes[0].html.slice(0, 120)}`;
    if (["serious", "critical"].includes(one.impact)) problems.push(line);
    else console.log(line);
  }
  await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = false)));
  if (folder) await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  if (folder && name === "light") await page.pdf({ path: `${folder}/print.pdf`, format: "A4" });
  await context.close();
}
await browser.close();
problems.forEach((problem) => console.log(problem));
console.log(`${report}: ${bytes.toLocaleString("en")} bytes, ${problems.length} problems`);
process.exit(problems.length ? 1 : 0);
