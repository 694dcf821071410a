// The page's files, on this machine alone: node serve.js [--port N], or copied into a folder that
// any static host can serve: node serve.js --copy FOLDER.

import { copyFile, mkdir, readdir, readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".jpg": "image/jpeg",
  ".js": "text/javascript; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".onnx": "application/octet-stream",
  ".wasm": "application/wasm",
};
const OWN = "index.html style.css main.js draw.js worker.js pose.js artifact.js geometry.js pixels.js";
// A page needs the first two for threads in WebAssembly (SharedArrayBuffer).
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "X-Content-Type-Options": "nosniff",
  "Cache-Control": "no-cache",
};

/** Path on the site → file. What is not here is not served. */
async function siteFiles() {
  const here = (path) => fileURLToPath(new URL(path, import.meta.url));
  const site = new Map(OWN.split(" ").map((name) => [name, here(name)]));
  for (const name of ["finder-s.onnx", "cfpose-s.onnx"]) {
    site.set(`models/${name}`, here(`../../cfpose_sdk/models/${name}`));
  }
  site.set("photos/street.jpg", here("../photos/street.jpg"));
  const runtime = here("node_modules/onnxruntime-web/dist/");
  const files = await readdir(runtime).catch(() => {
    throw new Error("onnxruntime-web is not installed: run npm ci in this folder");
  });
  const needed = /^ort\.(wasm|webgpu)\.min\.mjs$|^ort-wasm-simd-threaded(\.asyncify)?\.(mjs|wasm)$/;
  for (const name of files.filter((name) => needed.test(name))) {
    site.set(`ort/${name}`, join(runtime, name));
  }
  return site;
}

async function copy(site, folder) {
  for (const [path, file] of site) {
    await mkdir(dirname(join(folder, path)), { recursive: true });
    await copyFile(file, join(folder, path));
  }
  console.log(`${site.size} files in ${folder}`);
}

function serve(site, port) {
  const server = createServer(async (request, response) => {
    const path = request.url.split("?")[0].slice(1) || "index.html";
    const file = ["GET", "HEAD"].includes(request.method) && site.get(path);
    try {
      const body = file ? await readFile(file) : "not found\n";
      const type = file ? TYPES[extname(file)] : "text/plain";
      response.writeHead(file ? 200 : 404, { ...HEADERS, "Content-Type": type });
      response.end(request.method === "HEAD" ? undefined : body);
    } catch (error) {
      response.writeHead(500, HEADERS).end(`${error.message}\n`);
    }
  });
  server.on("error", (error) => {
    console.error(`port ${port}: ${error.message}; choose another with --port`);
    process.exitCode = 1;
  });
  // 127.0.0.1: nobody else in the network may see it
  server.listen(port, "127.0.0.1", () => {
    console.log(`http://127.0.0.1:${server.address().port}/`);
  });
}

const { values } = parseArgs({
  options: { port: { type: "string", default: "8000" }, copy: { type: "string" } },
});
try {
  const site = await siteFiles();
  if (values.copy) await copy(site, values.copy);
  else serve(site, Number(values.port));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
