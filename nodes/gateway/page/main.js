// What ties the page together: the form, the conversation, and the panel that is asked for anew.

import { Api, Refused } from "./api.js";
import { Chat } from "./chat.js";
import { Panel } from "./state.js";

const EVERY_MS = 1000;

const element = (id) => document.getElementById(id);
const api = new Api();
const panel = new Panel();
const chat = new Chat(api, element("messages"), needKey);

element("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = element("text").value.trim();
  if (!text || chat.isRunning) return;
  element("text").value = "";
  running(true);
  await chat.ask(text, {
    model: element("model").value,
    temperature: element("temperature").valueAsNumber,
    max_tokens: element("max-tokens").valueAsNumber,
  });
  running(false);
  element("text").focus();
});

element("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("ask").requestSubmit();
  }
});

element("stop").addEventListener("click", () => chat.stop());
element("clear").addEventListener("click", () => chat.clear());

element("toggle-side").addEventListener("click", () => {
  const side = element("side");
  side.hidden = !side.hidden;
  element("toggle-side").setAttribute("aria-expanded", String(!side.hidden));
});

element("key").addEventListener("change", () => {
  api.key = element("key").value;
});

function running(is) {
  element("send").disabled = is;
  element("stop").hidden = !is;
}

// The key is kept in this page only, and is gone when it is closed.
function needKey() {
  element("key-row").hidden = false;
  element("key").focus();
}

async function begin() {
  try {
    const models = await api.models();
    element("model").replaceChildren(...models.map((one) => new Option(one.id, one.id)));
    element("key-row").hidden = true;
  } catch (error) {
    failed(error);
  }
}

async function watch() {
  while (true) {
    const state = document.hidden ? null : await api.state().catch(failed);
    if (state) {
      panel.show(state);
      if (!element("model").options.length) await begin();
    }
    await new Promise((done) => setTimeout(done, EVERY_MS));
  }
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) needKey();
  panel.lost(error instanceof Refused ? error.message : "The gateway does not answer.");
}

begin();
watch();
