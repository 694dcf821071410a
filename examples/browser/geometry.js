// Boxes and crops: the geometry of cfpose_sdk/boxes.py and cfpose_sdk/crops.py.
//
// Pixel centres sit at integer coordinates: pixel (0, 0) covers [-0.5, 0.5). Order is (x, y). A box
// is [x1, y1, x2, y2] in pixels. A map leads from the frame to a crop: crop = scale * frame + (x, y).

/** The crop of a person: the box grows to the crop's aspect ratio, then by `boxScale`; its centre
 * maps to (W / 2, H / 2) of the crop. */
export function cropMap([x1, y1, x2, y2], [width, height], boxScale) {
  const regionWidth = Math.max(x2 - x1, ((y2 - y1) * width) / height) * boxScale;
  const scale = width / regionWidth;
  return {
    scale,
    x: width / 2 - (scale * (x1 + x2)) / 2,
    y: height / 2 - (scale * (y1 + y2)) / 2,
  };
}

/** A point of the crop, in pixels of the frame. */
export function toFrame(map, x, y) {
  return [(x - map.x) / map.scale, (y - map.y) / map.scale];
}

/** Intersection over union of two boxes. */
export function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  const shared = Math.max(width, 0) * Math.max(height, 0);
  const union = area(a) + area(b) - shared;
  return union > 0 ? shared / union : 0;
}

/** Greedy non-maximum suppression of [{box, score}]: those to keep, by falling score. A box goes
 * when it overlaps a kept one by more than `limit`; of equal scores the first wins. */
export function nms(found, limit) {
  const kept = [];
  for (const one of [...found].sort((a, b) => b.score - a.score)) {
    if (kept.every((other) => iou(one.box, other.box) <= limit)) kept.push(one);
  }
  return kept;
}

/** Half to even, as Python and OpenCV round: 0.5 → 0, 1.5 → 2. */
export function roundEven(value) {
  const low = Math.floor(value);
  const rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

function area([x1, y1, x2, y2]) {
  return Math.max(x2 - x1, 0) * Math.max(y2 - y1, 0);
}
