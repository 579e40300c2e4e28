// The gateway's HTTP interface, as any OpenAI client uses it.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  key = "";

  async models() {
    return (await (await this.#fetch("v1/models")).json()).data;
  }

  async state() {
    return (await this.#fetch("v1/fedsea/state")).json();
  }

  // Pieces of the answer's text as they come, then its usage.
  async *chat(asked, signal) {
    const body = { ...asked, stream: true, stream_options: { include_usage: true } };
    const response = await this.#fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(500, chunk.error.message);
      const text = chunk.choices[0]?.delta.content;
      if (text) yield { text };
      if (chunk.usage) yield { usage: chunk.usage };
    }
    throw new Refused(0, "The answer broke off.");
  }

  async #fetch(path, options = {}) {
    const headers = { ...options.headers };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    const said = await response.json().catch(() => null);
    throw new Refused(response.status, said?.error?.message ?? `${response.status}`);
  }
}

// The data of server-sent events.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}
