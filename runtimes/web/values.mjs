// Values of a job's rows as typed arrays, and a runtime's outputs as nested lists.

/** An error the host is told about. `kind`: job, unavailable or failed. */
export class RunnerError extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

// By the wire's names, and by those of types that only a model's inside or output has.
export const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};

/**
 * One input of one row: `{data, shape}`. Nested lists get a leading 1 before their own shape; where the signature gives
 * the whole `shape` they are one flat list. `dtype` is what the runtime wants.
 */
export function tensor(job, row, name, dtype) {
  if (!(name in row)) {
    throw new RunnerError("job", `the model wants an input '${name}' that the rows do not have (${Object.keys(row)})`);
  }
  const array = ARRAYS[dtype];
  if (array === undefined) {
    throw new RunnerError("unavailable", `inputs of type ${dtype} cannot be made in a browser ('${name}')`);
  }
  const whole = job.signature.find((one) => one.name === name)?.shape;
  const shape = whole ?? [1, ...shapeOf(row[name])];
  const flat = whole ? row[name] : row[name].flat(Infinity);
  if (flat.length !== shape.reduce((product, size) => product * size, 1)) {
    throw new RunnerError("job", `input '${name}' has ${flat.length} values, which do not fill ${JSON.stringify(shape)}`);
  }
  if (!flat.every((value) => typeof value === "number")) {
    throw new RunnerError("job", `input '${name}' has values that are not numbers`);
  }
  if (!dtype.startsWith("float") && !flat.every(Number.isSafeInteger)) {
    throw new RunnerError("job", `input '${name}' has values that are not whole numbers`);
  }
  return { data: array === BigInt64Array || array === BigUint64Array ? array.from(flat, BigInt) : array.from(flat), shape };
}

function shapeOf(values) {
  const shape = [];
  for (let inner = values; Array.isArray(inner); inner = inner[0]) shape.push(inner.length);
  return shape;
}

/** Nested lists of numbers in `shape` without its first dimension, which is the batch. */
export function nested(data, shape) {
  let values = Array.from(data, Number);
  for (const size of shape.slice(2).reverse()) {
    values = Array.from({ length: values.length / size }, (_, n) => values.slice(n * size, (n + 1) * size));
  }
  return values;
}
