// A line over the last minutes, drawn as SVG.

const NAMESPACE = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 50;
const KEPT = 120;

export class Plot {
  #svg;
  #said;
  #tell;
  #values = [];

  // `tell` gives a value as text; it stands in the caption.
  constructor(svg, tell) {
    this.#svg = svg;
    this.#tell = tell;
    this.#said = svg.closest("figure").querySelector("figcaption")
      .appendChild(document.createElement("b"));
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
  }

  // The plot begins at 0, and ends at the largest value or `top`, whichever is more.
  add(value, top = 0) {
    this.#values = [...this.#values, value].slice(-KEPT);
    const said = this.#tell(value);
    this.#said.textContent = said;
    this.#svg.setAttribute("aria-label", said);
    const most = Math.max(top, ...this.#values, 1e-9);
    const step = WIDTH / (KEPT - 1);
    const points = this.#values.map((one, index) => [
      WIDTH - (this.#values.length - 1 - index) * step,
      HEIGHT - 1 - (one / most) * (HEIGHT - 2),
    ]);
    const line = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
    const [first, last] = [points[0][0], points.at(-1)[0]];
    this.#svg.replaceChildren(
      shape("polygon", "under", `${first},${HEIGHT} ${line} ${last},${HEIGHT}`),
      shape("polyline", "line", line),
    );
  }
}

function shape(kind, name, points) {
  const made = document.createElementNS(NAMESPACE, kind);
  made.setAttribute("class", name);
  made.setAttribute("points", points);
  return made;
}
