// The spec that travels in a cfpose artifact. onnxruntime's JavaScript API does not hand out a
// graph's metadata, so it is read from the file: protobuf fields of ModelProto, of which
// metadata_props is number 14, with entries of a key (1) and a value (2).

const METADATA_PROPS = 14;
const NEWEST = { "cfpose.spec": 8, "cfpose.finder": 2 };

/** The JSON object under a key of the graph's metadata. Throws where it is missing or newer. */
export function readSpec(bytes, key) {
  for (const [number, entry] of fields(bytes)) {
    if (number !== METADATA_PROPS) continue;
    const pair = new Map(fields(entry));
    if (text(pair.get(1)) !== key) continue;
    const spec = JSON.parse(text(pair.get(2)));
    if (spec.spec_version > NEWEST[key]) {
      throw new Error(
        `the file has ${key} version ${spec.spec_version}, this page reads ${NEWEST[key]}`,
      );
    }
    return spec;
  }
  throw new Error(`the file is no cfpose artifact: its metadata has no ${key}`);
}

/** [number, bytes] of every length-delimited field; the weights are stepped over, not copied. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      if (byte === undefined) throw new Error("the file is no ONNX graph, or ends too early");
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error("the file is no ONNX graph");
  }
}

function text(bytes) {
  return new TextDecoder().decode(bytes);
}
