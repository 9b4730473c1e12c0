// Writing text: what the runner opens in the phase `write`, one entry per runtime. All of them are ONNX Runtime Web.
//
// A writer holds one artefact and its cache of keys and values. `read` empties the cache and reads a prompt, `feed` reads
// one token more; both give the likeliest next token (of equal logits the lowest id). ONNX Runtime Web hands outputs out
// of WebAssembly's memory: the cache crosses into JavaScript and back with every token.

import { RunnerError } from "./values.mjs";

const empty = (ort, session) => {
  const cache = {};
  for (const { name, shape } of session.inputMetadata) {
    if (!name.startsWith("past_key_values.")) continue;
    if (typeof shape[3] !== "number") throw new RunnerError("failed", `'${name}' does not say how wide a head is: export it again`);
    cache[name] = new ort.Tensor("float32", new Float32Array(0), [1, shape[1], 0, shape[3]]);
  }
  return cache;
};

const whole = (ort, values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);

/** What came out as the cache of the next call. */
function keep(cache, outputs) {
  for (const [name, value] of Object.entries(outputs)) {
    if (name.startsWith("present.")) cache[name.replace("present", "past_key_values")] = value;
  }
}

/** The likeliest token of the last row of logits [1, S, V]. */
function likeliest({ data, dims }) {
  const start = data.length - dims[2];
  let best = start;
  for (let at = start + 1; at < data.length; at += 1) if (data[at] > data[best]) best = at;
  if (!Number.isFinite(data[best])) throw new RunnerError("failed", "the model's output has a number that is not finite");
  return best - start;
}

/** A decoder with attention that knows its cache (GroupQueryAttention). */
async function decoder({ ort, create }, job, files) {
  const name = `${job.model.split("/").at(-1)}.data`;
  const session = await create(files.model, files.data ? { externalData: [{ path: name, data: files.data }] } : {});
  let cache;
  let fed;
  const run = async (ids) => {
    fed += ids.length;
    const mask = whole(ort, new Array(fed).fill(1));
    const outputs = await session.run({ input_ids: whole(ort, ids), attention_mask: mask, ...cache });
    keep(cache, outputs);
    return likeliest(outputs.logits);
  };
  return {
    context: job.context,
    read: (ids) => {
      cache = empty(ort, session);
      fed = 0;
      return run(ids);
    },
    feed: (token) => run([token]),
  };
}

/** Two graphs: a prompt is a source, and what is fed follows the token that the decoder starts with. */
async function text2text({ ort, create }, job, files) {
  const [config, writing] = [files.config, files.generation].map((bytes) => (bytes ? JSON.parse(new TextDecoder().decode(bytes)) : {}));
  const start = writing.decoder_start_token_id ?? config.decoder_start_token_id;
  if (start === undefined) throw new RunnerError("failed", "neither generation_config.json nor config.json has decoder_start_token_id");
  const encoder = await create(files.encoder);
  const session = await create(files.decoder);
  const later = session.outputNames.filter((name) => !name.includes(".encoder.")); // the source's keys and values stay
  let given;
  const run = async (token, wanted) => {
    const branch = new ort.Tensor("bool", [wanted === later], [1]);
    const outputs = await session.run({ ...given, input_ids: whole(ort, [token]), use_cache_branch: branch }, wanted);
    keep(given, outputs);
    return likeliest(outputs.logits);
  };
  return {
    context: Math.min(job.context, config.max_position_embeddings ?? job.context),
    read: async (ids) => {
      const mask = whole(ort, new Array(ids.length).fill(1));
      const states = await encoder.run({ input_ids: whole(ort, ids), attention_mask: mask });
      given = { encoder_hidden_states: states.last_hidden_state, encoder_attention_mask: mask, ...empty(ort, session) };
      return run(start, session.outputNames);
    },
    feed: (token) => run(token, later),
  };
}

// `files`: what is fetched, by name; `optional` of them need not be there.
export const WRITERS = {
  onnx: { open: decoder, files: ({ model }) => ({ model, data: `${model}.data` }), optional: ["data"] },
  onnxruntime: {
    open: text2text,
    files: ({ model }) => ({
      encoder: `${model}/onnx/encoder_model.onnx`,
      decoder: `${model}/onnx/decoder_model_merged.onnx`,
      config: `${model}/config.json`,
      generation: `${model}/generation_config.json`,
    }),
    optional: ["config", "generation"],
  },
};
