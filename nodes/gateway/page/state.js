// The panel: what was sent, what the trunk does, and what of it can be read.

import { Plot } from "./plot.js";

const ALARM =
  "At this setting the trunk can read what you write, as far as was measured. Noise is not encryption.";

const element = (id) => document.getElementById(id);

export class Panel {
  #rate = new Plot(element("rate-plot"), (value) => value.toFixed(1));
  #batch = new Plot(element("batch-plot"), (value) => value.toFixed(1));
  #kv = new Plot(element("kv-plot"), percent);

  show(state) {
    const { models, privacy, traffic, requests, trunk } = state;
    const { head_blocks: head, tail_blocks: tail } = models[0].cut;
    element("cut").textContent =
      `${models[0].id}, cut ${head}+${tail}: ${head + tail} blocks and the text are here, the others on the trunk`;
    this.#privacy(privacy, `${head}+${tail}`);
    terms(element("traffic"), {
      "noised states sent": bytes(traffic.bytes_sent),
      "states received": bytes(traffic.bytes_received),
      "tokens answered": traffic.tokens.toLocaleString(),
      "requests now": `${requests.now} of ${requests.most}`,
    });
    this.#rate.add(traffic.tokens_per_s);
    this.#trunk(trunk);
  }

  // Why there is no state to show.
  lost(message) {
    warn(message);
  }

  #privacy(privacy, cut) {
    const found = privacy.recovery;
    element("recovery").textContent = found === null ? "not measured" : percent(found.share);
    element("recovery-words").textContent =
      found === null
        ? "No audit of this model and cut is known here. Assume all of it."
        : `of a prompt's tokens: ${found.says}`;
    const alarming = found === null || found.share > privacy.max_recovery;
    element("recovery").classList.toggle("alarming", alarming);
    warn(alarming ? ALARM : "");
    terms(element("privacy"), {
      "cut, head + tail": cut,
      "noise sigma": privacy.sigma.toFixed(3),
      "of the states' RMS": (privacy.sigma / privacy.head_rms).toFixed(2),
      "sealed from the broker": privacy.sealed ? "yes" : "no",
    });
  }

  #trunk(trunk) {
    if (trunk.error) {
      element("nodes").replaceChildren(words(trunk.error.message));
      return;
    }
    const nodes = trunk.nodes;
    element("nodes").replaceChildren(
      ...(nodes.length ? nodes.map(node) : [words("No trunk node with this model is there.")]),
    );
    this.#batch.add(Math.max(0, ...nodes.map((one) => one.mean_batch)), 4);
    this.#kv.add(Math.max(0, ...nodes.map((one) => one.kv_share)), 0.01);
  }
}

function node(one) {
  const made = document.createElement("div");
  made.className = "node";
  const name = document.createElement("strong");
  name.textContent = one.takes_sessions ? one.name : `${one.name} (takes no sessions)`;
  const busy = document.createElement("meter");
  busy.value = one.busy_share;
  busy.title = `busy ${percent(one.busy_share)}`;
  const said = [
    `${one.sessions} sessions`,
    `${one.mean_batch.toFixed(1)} a step`,
    `${one.positions_per_s.toFixed(0)} positions/s`,
    `KV ${percent(one.kv_share)}`,
    `busy ${percent(one.busy_share)}`,
  ];
  made.append(name, busy, words(said.join(", ")));
  return made;
}

function words(text) {
  const made = document.createElement("div");
  made.className = "quiet";
  made.textContent = text;
  return made;
}

function terms(list, told) {
  list.replaceChildren(
    ...Object.entries(told).flatMap(([term, value]) => [named("dt", term), named("dd", value)]),
  );
}

function named(kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}

function warn(text) {
  const line = element("warning");
  line.textContent = text;
  line.hidden = text === "";
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, count)) / 3));
  return `${(count / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}
