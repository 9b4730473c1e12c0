// The little of a .tflite file that LiteRT.js does not tell: scale and zero point of the first output of every signature.
// Field numbers are those of tensorflow/lite/schema/schema.fbs (version 3); the encoding is FlatBuffers.
// JavaScript, because the page that measures (runtimes/web/litert.mjs) runs it as it is.

/** `[{scale, zero}]` by signature (of a file without signatures: of its first graph); 1 and 0 where not quantized. */
export function outputQuantization(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

  /** Place of a table's field, or 0 where it is absent. */
  const field = (table, number) => {
    const vtable = table - view.getInt32(table, true);
    const at = 4 + 2 * number;
    if (at >= view.getUint16(vtable, true)) return 0;
    const offset = view.getUint16(vtable + at, true);
    return offset && table + offset;
  };
  const follow = (at) => at + view.getUint32(at, true);
  const vector = (table, number) => {
    const at = field(table, number);
    return at ? { length: view.getUint32(follow(at), true), start: follow(at) + 4 } : { length: 0, start: 0 };
  };
  const element = ({ start }, n) => follow(start + 4 * n);

  const model = follow(0);
  const subgraphs = vector(model, 2);
  const quantizationOf = (subgraph, tensor) => {
    const at = field(element(vector(subgraph, 0), tensor), 4);
    if (!at) return { scale: 1, zero: 0 };
    const scales = vector(follow(at), 2);
    const zeros = vector(follow(at), 3);
    return {
      scale: scales.length ? view.getFloat32(scales.start, true) : 1,
      zero: zeros.length ? Number(view.getBigInt64(zeros.start, true)) : 0,
    };
  };

  const signatures = vector(model, 7);
  if (!signatures.length) {
    const first = element(subgraphs, 0);
    return [quantizationOf(first, view.getInt32(vector(first, 2).start, true))];
  }
  return Array.from({ length: signatures.length }, (_, n) => {
    const signature = element(signatures, n);
    const graph = field(signature, 4);
    const output = field(element(vector(signature, 1), 0), 1);
    return quantizationOf(
      element(subgraphs, graph ? view.getUint32(graph, true) : 0),
      output ? view.getUint32(output, true) : 0,
    );
  });
}
