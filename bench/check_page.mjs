// Opens a report in headless Chromium as a file: node bench/check_page.mjs REPORT.html [FOLDER]
//
// Fails on a console error, a network request, a finding of axe-core that is serious or worse, a page wider than its
// window, or more than 6 MB. Screenshots of light, dark, phone and print go to FOLDER. Needs what browser.mjs does.
import { statSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { checkAccess, checkViews, checkWidth, problems, watch } from "./browser.mjs";

const [report, folder] = process.argv.slice(2);
const address = pathToFileURL(resolve(report)).href;
const bytes = statSync(report).size;
if (bytes >= 6e6) problems.push(`${bytes} bytes`);

await checkViews(`${report}: ${bytes.toLocaleString("en")} bytes`, async (browser, name, settings) => {
  const context = await browser.newContext({ ...settings, bypassCSP: true });
  const page = await context.newPage();
  watch(page, name, (url) => url === address);
  await page.goto(address);
  await page.waitForFunction(() => [...document.querySelectorAll(".plot")].every((plot) => plot.querySelector("svg")));
  await checkWidth(page, name);
  await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));
  await checkAccess(page, name);
  await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = false)));
  if (folder) await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  if (folder && name === "light") await page.pdf({ path: `${folder}/print.pdf`, format: "A4" });
  await context.close();
});
