// Uses the page of examples/browser as a person would, in headless Chromium.
//
// node drive_page.mjs JOB: a JSON file of {page (an address), playwright (its package.json),
// chromium, flags, pictures, video, camera, shots (a folder), size_wh, timeout_ms}. Prints one JSON object:
// {runtime, answers, speeds, frames, console, requests, overflow}.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename, join } from "node:path";

const job = JSON.parse(await readFile(process.argv[2], "utf8"));
const { chromium } = createRequire(job.playwright)("playwright-core");
const browser = await chromium.launch({ executablePath: job.chromium, args: job.flags });
const out = { answers: [], speeds: [], frames: {}, console: [], requests: [] };
try {
  const [width, height] = job.size_wh;
  const page = await browser.newPage({ viewport: { width, height } });
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) out.console.push(message.text());
  });
  page.on("pageerror", (error) => out.console.push(error.message));
  page.context().on("request", (request) => out.requests.push(request.url()));
  await page.addInitScript(() => {
    globalThis.seen = [];
    document.addEventListener("poses", ({ detail }) => globalThis.seen.push(detail));
  });
  await page.goto(job.page);
  await page.waitForFunction(() => !document.querySelector("#camera").disabled, undefined, {
    timeout: job.timeout_ms,
  });
  out.runtime = await page.textContent("#runtime");

  const seen = async (least) => {
    const enough = (count) => globalThis.seen.length >= count;
    await page.waitForFunction(enough, least, { timeout: job.timeout_ms });
    return page.evaluate(() => globalThis.seen.splice(0));
  };
  for (const picture of job.pictures) {
    await page.setInputFiles("#picture", picture);
    out.answers.push((await seen(1))[0]);
    out.speeds.push(await page.textContent("#speed"));
    const shot = join(job.shots, basename(picture));
    await page.screenshot({ path: `${shot}.page.png` });
    await page.locator("#canvas").screenshot({ path: `${shot}.canvas.png` });
  }
  if (job.video) {
    await page.setInputFiles("#film", job.video);
    out.frames.video = await seen(1); // a slow machine sees no more of a short one
    await page.waitForSelector("#stop", { state: "hidden", timeout: job.timeout_ms }); // played to its end
  }
  if (job.camera) {
    await page.click("#camera");
    out.frames.camera = await seen(2);
    await page.click("#stop");
    await page.waitForFunction(() => document.querySelector("#status").textContent === "stopped");
  }
  out.overflow = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
} finally {
  await browser.close();
}
console.log(JSON.stringify(out));
