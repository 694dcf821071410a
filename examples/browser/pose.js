// Person finder and pose network around any onnxruntime for JavaScript (onnxruntime-web here,
// onnxruntime-node in examples/node). Softmax, sub-bin decoding, refinement and calibration are in
// the graph: what it returns are joints in pixels of the crop.

import { readSpec } from "./artifact.js";
import { cropMap, nms, toFrame } from "./geometry.js";
import { cutCrop, letterbox } from "./pixels.js";

const BATCH = 32; // people at once at most, as in the SDK

export class PoseEstimator {
  /** `ort`: the module of onnxruntime; `finder`, `pose`: the files as Uint8Array; `options`: of
   * ort.InferenceSession.create. */
  static async open(ort, finder, pose, options = {}) {
    const self = new PoseEstimator();
    self.ort = ort;
    self.finderSpec = readSpec(finder, "cfpose.finder");
    self.spec = readSpec(pose, "cfpose.spec");
    if (self.spec.input !== "crops") {
      throw new Error(`expected a graph that takes crops, got one that takes ${self.spec.input}`);
    }
    if ((self.spec.geometry ?? "classic") !== "classic") {
      throw new Error(`this page cuts classic crops, the file wants ${self.spec.geometry}`);
    }
    self.finder = await ort.InferenceSession.create(finder, options);
    self.network = await ort.InferenceSession.create(pose, options);
    return self;
  }

  /** The people in an RGBA image {data, width, height}:
   * {people: [{box, score, joints: [[x, y, confidence], …]}], size_wh, speed_ms}. */
  async predict(image) {
    const start = performance.now();
    const found = await this.find(image);
    const detected = performance.now();
    const people = [];
    const spent = { crop: 0, infer: 0 };
    for (let first = 0; first < found.length; first += BATCH) {
      people.push(...(await this.#pose(image, found.slice(first, first + BATCH), spent)));
    }
    const total = performance.now() - start;
    const speed = { detect: detected - start, ...spent, total };
    return { people, size_wh: [image.width, image.height], speed_ms: speed };
  }

  /** [{box, score}] of the people by falling score, clipped to the image. */
  async find(image) {
    const { size_wh: size, pad_value: pad, threshold, nms_iou: limit } = this.finderSpec;
    const open = typeof this.finder.inputMetadata[0].shape[1] === "string"; // a side without length
    const { bgr, size_wh: used, scale } = letterbox(image, size, pad, open);
    const [width, height] = used;
    const images = new this.ort.Tensor("uint8", bgr, [1, height, width, 3]);
    const { boxes, scores } = await this.finder.run({ images });
    const found = [];
    scores.data.forEach((score, n) => {
      if (score < threshold) return;
      const edges = boxes.data.subarray(4 * n, 4 * n + 4);
      const box = Array.from(edges, (value, side) =>
        Math.min(Math.max(value / scale, 0), side % 2 ? image.height : image.width),
      );
      if (box[2] > box[0] && box[3] > box[1]) found.push({ box, score });
    });
    return nms(found, limit);
  }

  async close() {
    await this.finder.release();
    await this.network.release();
  }

  async #pose(image, found, spent) {
    const start = performance.now();
    const [width, height] = this.spec.size_wh;
    const one = width * height * 3;
    const bytes = new Uint8Array(found.length * one);
    const maps = found.map(({ box }) => cropMap(box, this.spec.size_wh, this.spec.box_scale));
    maps.forEach((map, n) => cutCrop(image, map, this.spec.size_wh, bytes, n * one));
    const cut = performance.now();
    const crops = new this.ort.Tensor("uint8", bytes, [found.length, height, width, 3]);
    // the two that are drawn; the other outputs need not be copied back
    const { keypoints, confidence } = await this.network.run({ crops }, ["keypoints", "confidence"]);
    spent.crop += cut - start;
    spent.infer += performance.now() - cut;
    const joints = this.spec.keypoints.length;
    return found.map((person, n) => ({
      ...person,
      joints: Array.from({ length: joints }, (_, k) => {
        const at = n * joints + k;
        const place = toFrame(maps[n], keypoints.data[2 * at], keypoints.data[2 * at + 1]);
        return [...place, Math.min(Math.max(confidence.data[at], 0), 1)];
      }),
    }));
  }
}
