// The networks run here, away from the page, which stays alive meanwhile.
//
// In: {open: {backend}}, then {frame: ImageBitmap} one after the other. Out: {opened: {runtime,
// limbs, sides}}, {poses, frame} with the same bitmap, or {error}.

import { PoseEstimator } from "./pose.js";

const MAX_THREADS = 4; // more gain nothing for networks this small
let estimator;
let context;

/** onnxruntime-web: with WebGPU where a GPU answers, else WebAssembly with SIMD, and with threads
 * where the page is isolated from other origins. */
async function load(backend) {
  const adapter = backend !== "wasm" && (await navigator.gpu?.requestAdapter());
  if (backend === "webgpu" && !adapter) throw new Error("this browser offers no WebGPU here");
  // an adapter in software is slower than WebAssembly
  const gpu = backend === "webgpu" || Boolean(adapter && !adapter.info?.isFallbackAdapter);
  const ort = await import(gpu ? "./ort/ort.webgpu.min.mjs" : "./ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
  ort.env.wasm.numThreads = crossOriginIsolated
    ? Math.min(navigator.hardwareConcurrency, MAX_THREADS)
    : 1;
  return { ort, gpu };
}

async function open({ backend }) {
  const files = Promise.all(["finder-s.onnx", "cfpose-s.onnx"].map(bytesOf));
  const [{ ort, gpu }, [finder, pose]] = await Promise.all([load(backend), files]);
  const options = { executionProviders: gpu ? ["webgpu", "wasm"] : ["wasm"], logSeverityLevel: 3 };
  estimator = await PoseEstimator.open(ort, finder, pose, options);
  const threads = ort.env.wasm.numThreads;
  const runtime = gpu ? "WebGPU" : `WASM, ${threads} thread${threads > 1 ? "s" : ""}`;
  const { limbs, flip_pairs: sides, keypoints } = estimator.spec;
  return { runtime, limbs, sides, keypoints };
}

async function bytesOf(name) {
  const response = await fetch(new URL(`./models/${name}`, import.meta.url));
  if (!response.ok) throw new Error(`models/${name}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** RGBA bytes of a bitmap, in its own colours and size. */
function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  if (context?.canvas.width !== width || context.canvas.height !== height) {
    const canvas = new OffscreenCanvas(width, height);
    context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  }
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, width, height);
}

addEventListener("message", async ({ data }) => {
  try {
    if (data.open) postMessage({ opened: await open(data.open) });
    else {
      const poses = await estimator.predict(pixelsOf(data.frame));
      postMessage({ poses, frame: data.frame }, [data.frame]);
    }
  } catch (error) {
    postMessage({ error: error.message });
  }
});
