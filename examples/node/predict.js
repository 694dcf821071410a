// Poses in photos, as JSON lines: node predict.js PHOTO...
//
// The same graphs as in Python, run by onnxruntime-node; boxes and crops are those of the page in
// examples/browser. sharp decodes the photos.

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";
import sharp from "sharp";

import { PoseEstimator } from "../browser/pose.js";

const MODELS = new URL("../../cfpose_sdk/models/", import.meta.url);

/** A photo as RGBA, turned upright by its EXIF orientation. */
async function readImage(path) {
  const upright = sharp(path, { failOn: "truncated" }).rotate().toColourspace("srgb");
  const { data, info } = await upright.ensureAlpha().raw().toBuffer({ resolveWithObject: true });
  return { data, width: info.width, height: info.height };
}

const photos = process.argv.slice(2);
if (photos.length === 0) {
  console.error("usage: node predict.js PHOTO...");
  process.exit(2);
}
const files = ["finder-s.onnx", "cfpose-s.onnx"].map((name) => readFile(new URL(name, MODELS)));
const estimator = await PoseEstimator.open(ort, ...(await Promise.all(files)));
for (const photo of photos) {
  try {
    console.log(JSON.stringify({ image: photo, ...(await estimator.predict(await readImage(photo))) }));
  } catch (error) {
    console.error(`${photo}: ${error.message}`);
    process.exitCode = 1;
  }
}
await estimator.close();
