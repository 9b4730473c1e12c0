// Asks the web library's tokenizer: `node web_tokenize.mjs MODULE TOKENIZER_JSON`, one question a line in and one answer out.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, file] = process.argv.slice(2);
const { Tokenizer } = await import(pathToFileURL(module).href);
const tokenizer = new Tokenizer(JSON.parse(readFileSync(file, "utf8")));
const answers = [];
for (const line of readFileSync(0, "utf8").split("\n")) {
  if (!line) continue;
  const { text, pair, max_length: length } = JSON.parse(line);
  const { ids, types, offsets, sequences } = tokenizer.encode(text, length, pair);
  const special_mask = sequences.map((one) => Number(one === null));
  answers.push(JSON.stringify({ ids, offsets, special_mask, type_ids: types }));
}
process.stdout.write(answers.join("\n"));
