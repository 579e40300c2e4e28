// The conversation: what was said, and what is being answered.

import { Refused } from "./api.js";

// Of fewer tokens no rate is told.
const FEW = 8;

export class Chat {
  #api;
  #list;
  #said = [];
  #running = null;
  #onKeyNeeded;

  constructor(api, list, onKeyNeeded) {
    this.#api = api;
    this.#list = list;
    this.#onKeyNeeded = onKeyNeeded;
  }

  get isRunning() {
    return this.#running !== null;
  }

  // Resolves when the answer is whole, stopped or failed.
  async ask(text, settings) {
    const said = this.#said; // of this chat: the next one begins with another
    const mine = this.#add("user", text);
    const theirs = this.#add("assistant running", "");
    this.#running = new AbortController();
    const answer = { text: "", began: performance.now(), first: null, usage: null };
    try {
      await this.#stream(text, settings, answer, theirs);
    } catch (error) {
      this.#failed(error, theirs);
    } finally {
      this.#running = null;
      theirs.classList.remove("running");
    }
    if (answer.text) {
      said.push({ role: "user", content: text }, { role: "assistant", content: answer.text });
      theirs.append(paragraph(measured(answer), "measured"));
    } else if (!theirs.querySelector(".failed")) {
      theirs.append(paragraph("nothing", "measured"));
    }
    mine.scrollIntoView({ block: "nearest" });
    theirs.scrollIntoView({ block: "end" });
  }

  stop() {
    this.#running?.abort();
  }

  clear() {
    this.stop();
    this.#said = [];
    for (const one of this.#list.querySelectorAll(".user, .assistant")) one.remove();
  }

  async #stream(text, settings, answer, theirs) {
    const messages = [...this.#said, { role: "user", content: text }];
    const line = theirs.querySelector("p");
    for await (const piece of this.#api.chat({ ...settings, messages }, this.#running.signal)) {
      if (piece.usage) {
        answer.usage = piece.usage;
        continue;
      }
      answer.first ??= performance.now();
      answer.text += piece.text;
      line.textContent = answer.text;
      theirs.scrollIntoView({ block: "end" });
    }
    answer.ended = performance.now();
  }

  #failed(error, theirs) {
    if (error.name === "AbortError") {
      theirs.append(paragraph("stopped", "measured"));
      return;
    }
    theirs.append(paragraph(error.message, "failed"));
    if (error instanceof Refused && error.status === 401) this.#onKeyNeeded();
  }

  #add(kind, text) {
    const item = document.createElement("li");
    item.className = kind;
    item.append(paragraph(text));
    this.#list.append(item);
    item.scrollIntoView({ block: "end" });
    return item;
  }
}

function paragraph(text, kind = "") {
  const made = document.createElement("p");
  made.className = kind;
  made.textContent = text;
  return made;
}

function measured(answer) {
  if (!answer.usage || answer.first === null) return "stopped early";
  const tokens = answer.usage.completion_tokens;
  const wait = `first token ${Math.round(answer.first - answer.began)} ms`;
  if (tokens < FEW) return `${tokens} tokens, ${wait}`;
  const rate = (tokens - 1) / Math.max((answer.ended - answer.first) / 1000, 1e-3);
  return `${tokens} tokens, ${wait}, then ${rate.toFixed(0)} tokens/s`;
}
