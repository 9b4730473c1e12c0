// The worker: models that are loaded, asked and closed by messages (messages.ts). One worker may hold several.

import { told } from "./errors.js";
import { type Host, local } from "./host.js";
import type { Question, Reply } from "./messages.js";
import type { Progress } from "./settings.js";

const hosts = new Map<number, Host>(); // by the id of the message that loaded them
const loading = new Map<number, AbortController>();

const say = (reply: Reply): void => postMessage(reply);

addEventListener("message", (event: MessageEvent<Question>) => {
  const { data } = event;
  answered(data).then(
    (value) => say({ id: data.id, value }),
    (error: unknown) => say({ id: data.id, error: { name: error instanceof Error ? error.name : "Error", message: told(error) } }),
  );
});

async function answered(question: Question): Promise<unknown> {
  const { id } = question;
  switch (question.ask) {
    case "load": {
      const ending = new AbortController();
      loading.set(id, ending);
      const onProgress = (progress: Progress): void => say({ id, progress });
      try {
        const host = await local(question.task, question.url, { ...question.options, signal: ending.signal, onProgress });
        hosts.set(id, host);
        return host.about;
      } finally {
        loading.delete(id);
      }
    }
    case "abort":
      return loading.get(question.of)?.abort();
    case "call":
      return hosts.get(question.of)!.ask(question.method, ...question.given);
    case "close":
      await hosts.get(question.of)?.close();
      hosts.delete(question.of);
  }
}
