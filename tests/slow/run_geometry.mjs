// What examples/browser makes of a picture and of boxes: node run_geometry.mjs JOB PIXELS.
//
// JOB: a JSON file of {folder (a file URL), image: {width, height}, size_wh, large_wh, pad, box,
// crop_wh, box_scale, boxes, scores, limit}; PIXELS: the image's RGBA bytes. Prints {kept, scale};
// writes the letterbox, that of large_wh cut, and the crop, as BGR bytes, to PIXELS.letterbox,
// PIXELS.cut and PIXELS.crop.

import { readFile, writeFile } from "node:fs/promises";

const [, , jobFile, pixels] = process.argv;
const job = JSON.parse(await readFile(jobFile, "utf8"));
const { cropMap, nms } = await import(`${job.folder}/geometry.js`);
const { cutCrop, letterbox } = await import(`${job.folder}/pixels.js`);

const image = { data: await readFile(pixels), ...job.image };
const { bgr, scale } = letterbox(image, job.size_wh, job.pad);
await writeFile(`${pixels}.letterbox`, bgr);
await writeFile(`${pixels}.cut`, letterbox(image, job.large_wh, job.pad, true).bgr);
const [width, height] = job.crop_wh;
const crop = new Uint8Array(width * height * 3);
cutCrop(image, cropMap(job.box, job.crop_wh, job.box_scale), job.crop_wh, crop, 0);
await writeFile(`${pixels}.crop`, crop);
const people = job.boxes.map((box, n) => ({ box, score: job.scores[n], n }));
console.log(JSON.stringify({ kept: nms(people, job.limit).map(({ n }) => n), scale }));
