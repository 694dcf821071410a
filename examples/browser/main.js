// The page: takes frames from a picture, a video or the camera, hands them to the worker one at a
// time, and draws what comes back. Nothing leaves the browser.

import { draw } from "./draw.js";

const at = (id) => document.getElementById(id);
const context = at("canvas").getContext("2d");
const video = at("video");
const worker = new Worker("./worker.js", { type: "module" });

let model; // limbs, sides and keypoints of the opened graph
let answer; // takes the worker's answer to the frame that is under way
let latest; // what was drawn last
let turn = 0; // counts the sources; a loop ends when another one has begun

worker.addEventListener("message", ({ data }) => answer?.(data));
worker.addEventListener("error", (event) => say(`the worker failed: ${event.message}`, true));

function ask(message, transfer = []) {
  return new Promise((resolve, reject) => {
    answer = (data) => (data.error ? reject(new Error(data.error)) : resolve(data));
    worker.postMessage(message, transfer);
  });
}

function say(text, failed = false) {
  at("status").textContent = text;
  at("status").classList.toggle("failed", failed);
}

/** Measure one frame and draw it; the bitmap comes back with its poses, so they fit each other. */
async function show(bitmap, mine) {
  const start = performance.now();
  const { poses, frame } = await ask({ frame: bitmap }, [bitmap]);
  const whole = performance.now() - start;
  if (mine === turn) {
    draw(context, frame, poses.people, model);
    report(poses, whole);
  }
  frame.close();
}

function report(poses, whole) {
  const { detect, crop, infer } = poses.speed_ms;
  const count = poses.people.length;
  say(`${count} ${count === 1 ? "person" : "people"}`);
  at("speed").textContent =
    `${whole.toFixed(0)} ms a frame: finding ${detect.toFixed(0)}, ` +
    `crops ${crop.toFixed(0)}, poses ${infer.toFixed(0)}`;
  latest = { keypoints: model.keypoints, ...poses };
  at("save").disabled = false;
  // for whoever builds on this page, and for its test
  document.dispatchEvent(new CustomEvent("poses", { detail: latest }));
}

/** Begin another source; `work` gets its number. It waits for the frame that is under way. */
let before = Promise.resolve();
function begin(work) {
  const mine = ++turn;
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.removeAttribute("src");
  video.load();
  at("stop").hidden = true;
  before = before
    .then(() => (mine === turn ? work(mine) : undefined))
    .catch((error) => mine === turn && say(error.message, true)); // else it was cut short
}

/** `take` returns the picture as a Blob. */
function showPicture(take) {
  begin(async (mine) => {
    say("looking…");
    // upright by EXIF, and without conversion to the screen's colours: as OpenCV reads it
    const how = { imageOrientation: "from-image", colorSpaceConversion: "none" };
    const bitmap = await createImageBitmap(await take(), how).catch((error) => {
      throw new Error(`this is no picture that the browser can read: ${error.message}`);
    });
    await show(bitmap, mine);
  });
}

/** Frame after frame until the video ends or another source begins; frames that come meanwhile
 * are passed over. */
async function play(mine) {
  await video.play();
  at("stop").hidden = false;
  while (mine === turn && !video.ended) {
    if (video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) {
      await show(await createImageBitmap(video), mine);
    }
    await new Promise(requestAnimationFrame);
  }
  if (mine === turn) at("stop").hidden = true;
}

function showVideo(file) {
  begin(async (mine) => {
    say("opening the video…");
    const address = URL.createObjectURL(file);
    video.src = address;
    await play(mine).finally(() => URL.revokeObjectURL(address));
  });
}

function showCamera() {
  begin(async (mine) => {
    say("waiting for the camera…");
    if (!navigator.mediaDevices) throw new Error("a camera needs https or localhost");
    const size = { width: { ideal: 640 }, height: { ideal: 480 } };
    const stream = await navigator.mediaDevices.getUserMedia({ video: size });
    video.srcObject = stream;
    await play(mine);
  });
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(latest)], { type: "application/json" }));
  link.download = "poses.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

at("picture").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) showPicture(() => file);
  target.value = ""; // the same file may be chosen again
});
at("film").addEventListener("change", ({ target }) => {
  if (target.files[0]) showVideo(target.files[0]);
  target.value = "";
});
at("example").addEventListener("click", () =>
  showPicture(async () => {
    const response = await fetch("./photos/street.jpg");
    if (!response.ok) throw new Error(`photos/street.jpg: ${response.status}`);
    return response.blob();
  }),
);
at("camera").addEventListener("click", showCamera);
at("stop").addEventListener("click", () => begin(() => say("stopped")));
at("save").addEventListener("click", save);

try {
  const backend = new URLSearchParams(location.search).get("backend") ?? "auto";
  ({ opened: model } = await ask({ open: { backend } }));
  at("runtime").textContent = model.runtime;
  for (const control of document.querySelectorAll(".source")) control.disabled = false;
  say("ready: choose a picture, a video or the camera");
} catch (error) {
  say(`the models did not open: ${error.message}`, true);
}
