// Pictures for the two networks: what cv2.resize and cv2.warpAffine make of them in the SDK.
//
// An image is {data, width, height} with RGBA bytes, as a canvas hands it out (ImageData). The
// networks take BGR bytes. The canvas' own scaling would be faster and is not used: each browser
// has its own, and the joints would move with it.

import { roundEven } from "./geometry.js";

const CUT_MULTIPLE = 64; // of a cut letterbox's sides, as in the SDK

/** Fit the image into W x H at the top left, aspect true, grey elsewhere: {bgr, size_wh, scale}.
 * `cut` leaves out the margin beyond the next multiple of CUT_MULTIPLE. */
export function letterbox(image, size, padValue, cut = false) {
  const scale = Math.min(size[0] / image.width, size[1] / image.height);
  const fitWidth = Math.max(1, roundEven(image.width * scale));
  const fitHeight = Math.max(1, roundEven(image.height * scale));
  const [width, height] = [fitWidth, fitHeight].map((side, axis) =>
    cut ? Math.min(size[axis], Math.ceil(side / CUT_MULTIPLE) * CUT_MULTIPLE) : size[axis],
  );
  const bgr = new Uint8Array(width * height * 3).fill(padValue);
  const fitted = (scale < 1 ? shrink : enlarge)(image, fitWidth, fitHeight);
  for (let y = 0; y < fitHeight; y++) {
    bgr.set(fitted.subarray(y * fitWidth * 3, (y + 1) * fitWidth * 3), y * width * 3);
  }
  return { bgr, size_wh: [width, height], scale };
}

/** Write the W x H crop of a map into `bgr` from byte `at` on: bilinear, black outside the image. */
export function cutCrop(image, map, [width, height], bgr, at) {
  const { data } = image;
  for (let y = 0; y < height; y++) {
    const frameY = (y - map.y) / map.scale;
    const top = Math.floor(frameY);
    const low = frameY - top;
    for (let x = 0; x < width; x++, at += 3) {
      const frameX = (x - map.x) / map.scale;
      const left = Math.floor(frameX);
      const right = frameX - left;
      let blue = 0;
      let green = 0;
      let red = 0;
      for (let n = 0; n < 4; n++) {
        const dx = n & 1;
        const dy = n >> 1;
        if (left + dx < 0 || left + dx >= image.width) continue;
        if (top + dy < 0 || top + dy >= image.height) continue;
        const weight = (dx ? right : 1 - right) * (dy ? low : 1 - low);
        const from = ((top + dy) * image.width + left + dx) * 4;
        red += weight * data[from];
        green += weight * data[from + 1];
        blue += weight * data[from + 2];
      }
      bgr[at] = roundEven(blue);
      bgr[at + 1] = roundEven(green);
      bgr[at + 2] = roundEven(red);
    }
  }
}

/** Each new pixel is the mean over the old ones that it covers (INTER_AREA), as BGR. */
function shrink(image, width, height) {
  const across = coverage(image.width, width);
  const down = coverage(image.height, height);
  const bgr = new Uint8Array(width * height * 3);
  // of a picture of twice the size OpenCV rounds halves up, of any other to even
  const halved = image.width === 2 * width && image.height === 2 * height;
  const round = halved ? Math.round : roundEven;
  // rows across, then down, in float32: in OpenCV's order and precision, for means often lie half
  // way between two bytes, and the last bit then decides
  const row = new Float32Array(width * 3);
  const sum = new Float32Array(width * 3);
  for (let y = 0; y < height; y++) {
    sum.fill(0);
    down[y].weights.forEach((weight, n) => {
      shrinkRow(image, down[y].first + n, across, row);
      for (let at = 0; at < row.length; at++) sum[at] += weight * row[at];
    });
    for (let at = 0; at < sum.length; at++) bgr[y * sum.length + at] = round(sum[at]);
  }
  return bgr;
}

function shrinkRow(image, y, across, row) {
  row.fill(0);
  across.forEach(({ first, weights }, x) => {
    for (let n = 0, from = (y * image.width + first) * 4; n < weights.length; n++, from += 4) {
      row[3 * x] += weights[n] * image.data[from + 2];
      row[3 * x + 1] += weights[n] * image.data[from + 1];
      row[3 * x + 2] += weights[n] * image.data[from];
    }
  });
}

/** The first old pixel under each new one, and the share of it and of those that follow. */
function coverage(from, to) {
  const step = from / to;
  return Array.from({ length: to }, (_, n) => {
    const start = n * step;
    const end = Math.min(start + step, from);
    const first = Math.floor(start);
    const weights = [];
    for (let old = first; old < end; old++) {
      weights.push((Math.min(end, old + 1) - Math.max(start, old)) / (end - start));
    }
    return { first, weights: Float32Array.from(weights) };
  });
}

/** Each new pixel lies between the four nearest old ones; edges meet edges (INTER_LINEAR). Weights
 * are whole 2048ths and sums are cut off as OpenCV does. */
function enlarge(image, width, height) {
  const across = neighbours(image.width, width);
  const down = neighbours(image.height, height);
  const bgr = new Uint8Array(width * height * 3);
  let at = 0;
  for (const [top, bottom, lower] of down) {
    const [upperRow, lowerRow] = [top * image.width, bottom * image.width];
    for (const [left, right, further] of across) {
      for (let channel = 2; channel >= 0; channel--) {
        const byte = (row, x) => image.data[(row + x) * 4 + channel];
        const between = (row) => byte(row, left) * (2048 - further) + byte(row, right) * further;
        const upper = ((2048 - lower) * (between(upperRow) >> 4)) >> 16;
        bgr[at++] = (upper + ((lower * (between(lowerRow) >> 4)) >> 16) + 2) >> 2;
      }
    }
  }
  return bgr;
}

/** [nearer to the start, nearer to the end, 2048ths of the latter] for each new pixel. */
function neighbours(from, to) {
  return Array.from({ length: to }, (_, n) => {
    const place = Math.min(Math.max(((n + 0.5) * from) / to - 0.5, 0), from - 1);
    const first = Math.floor(place);
    return [first, Math.min(first + 1, from - 1), roundEven((place - first) * 2048)];
  });
}
