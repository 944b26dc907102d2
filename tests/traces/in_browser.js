// Opens an address in a Chromium without a window, and tells what Perfetto's UI shows of a trace.
//
//   node in_browser.js CHROMIUM URL PICTURE
//
// Speaks the DevTools protocol over pipes, so that the browser ends with this program, however that ends.
// Prints one JSON object: {"tracks": [title, ...], "errors": text}, with the titles in their order on the
// page, and writes the page as a PNG to PICTURE.
"use strict";
const { spawn } = require("child_process");
const fs = require("fs");
const os = require("os");
const path = require("path");

const [chromium, url, picture] = process.argv.slice(2);
const WIDTH = 1600, HEIGHT = 1000;
const LIMIT_MS = 120_000, LOOK_MS = 300, STEADY_LOOKS = 8;

const TRACKS = `JSON.stringify([...document.querySelectorAll(".pf-track__title-popup")].map(
  (one) => one.innerText.replace(/\\u00a0/g, " ").trim()))`;
const ERRORS = `document.querySelector(".pf-error-box, .error-box, .modal-dialog")?.innerText ?? ""`;

const profile = fs.mkdtempSync(path.join(os.tmpdir(), "keepwarm-browser-"));
const browser = spawn(chromium, [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--use-gl=angle",
  "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-pipe",
  `--window-size=${WIDTH},${HEIGHT}`, `--user-data-dir=${profile}`, "about:blank",
], { stdio: ["ignore", "ignore", "pipe", "pipe", "pipe"] });

function end(code) {
  browser.on("exit", () => {
    fs.rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    process.exit(code);
  });
  ask("Browser.close");
}

const waiting = new Map();
let last = 0, heard = "";
browser.stdio[4].setEncoding("utf8").on("data", (text) => {
  const messages = (heard + text).split("\0");
  heard = messages.pop();
  for (const answer of messages.map(JSON.parse)) waiting.get(answer.id)?.(answer.result);
});

function ask(method, params = {}, sessionId = undefined) {
  return new Promise((answered) => {
    waiting.set(++last, answered);
    browser.stdio[3].write(JSON.stringify({ id: last, method, params, sessionId }) + "\0");
  });
}

async function look() {
  const { targetId } = await ask("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await ask("Target.attachToTarget", { targetId, flatten: true });
  const size = { width: WIDTH, height: HEIGHT, deviceScaleFactor: 1, mobile: false };
  await ask("Emulation.setDeviceMetricsOverride", size, sessionId);
  await ask("Page.navigate", { url }, sessionId);
  const value = async (expression) =>
    (await ask("Runtime.evaluate", { expression, returnByValue: true }, sessionId)).result.value;
  let tracks = "[]";
  for (let same = 0; same < STEADY_LOOKS; ) {
    await new Promise((go) => setTimeout(go, LOOK_MS));
    const now = await value(TRACKS);
    same = now === tracks && now !== "[]" ? same + 1 : 0;
    tracks = now;
  }
  const { data } = await ask("Page.captureScreenshot", { format: "png" }, sessionId);
  fs.writeFileSync(picture, Buffer.from(data, "base64"));
  console.log(JSON.stringify({ tracks: JSON.parse(tracks), errors: await value(ERRORS) }));
}

let said = "";
browser.stderr.on("data", (text) => { said += text; });
look().then(() => end(0), (error) => { console.error(error); end(1); });
setTimeout(() => { console.error("the page was not there in time:", said.slice(-1000)); end(2); }, LIMIT_MS);
