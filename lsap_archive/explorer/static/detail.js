// One image: its original, what every method and edit made of it, its numbers, its neighbours, and sliders.

import { ask, make, Picture, shown } from "./elements.js";
import { neighbours } from "./neighbours.js";

const PLACES = new Set(["run_id", "row", "image_id", "uri", "digest", "method", "shard", "attempt", "subject_run_id", "subject_row"]);
const TOLD = 4; // numbers below a picture
const RENDER_AFTER = 120; // milliseconds that sliders have to rest

export class Detail {
  constructor(dialog, { about, closed, step, go, choose, compare }) {
    Object.assign(this, { dialog, about, closed, step, go, choose, compare });
    this.title = dialog.querySelector("#detail-id");
    this.body = dialog.querySelector("#detail-body");
    dialog.querySelector("#close").addEventListener("click", () => dialog.close());
    dialog.querySelector("#previous").addEventListener("click", () => step(-1));
    dialog.querySelector("#next").addEventListener("click", () => step(1));
    dialog.addEventListener("close", () => {
      this.shownImage = null;
      this.closed();
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || event.target.closest("input, select, summary") || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.step(step);
    });
  }

  get isOpen() {
    return this.dialog.open;
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  /** Shows an image, with one method chosen among those it has; `compared` says how its neighbours are found. */
  async show(image, method, columns, compared) {
    const key = `${image}\n${method}`;
    if (this.shownImage === key && this.dialog.open) return;
    this.shownImage = key;
    this.title.textContent = image;
    if (!this.dialog.open) this.dialog.showModal();
    let told;
    try {
      told = await ask("api/image", new URLSearchParams({ image }));
    } catch (error) {
      this.body.replaceChildren(make("p", { className: "error", textContent: error.message }));
      return;
    }
    if (this.shownImage !== key) return;
    const rows = this.sorted(told.rows);
    const chosen = rows.find((row) => row.method === method) ?? rows[0];
    const beside = make("div", { className: "figures" }, this.original(rows[0]), ...rows.map((row) => this.figure(row, chosen, columns)));
    const parts = [beside];
    if (this.about.directions?.length && chosen.status !== "failed") parts.push(this.sliders(chosen));
    if (chosen.status !== "failed") parts.push(this.neighbours(chosen, compared));
    parts.push(this.table(chosen), this.files(chosen));
    this.body.replaceChildren(...parts);
    this.body.scrollTop = 0;
  }

  sorted(rows) {
    const order = new Map(this.about.methods.map((method, at) => [method.name, at]));
    return rows.toSorted((a, b) => (order.get(a.method) ?? 1e9) - (order.get(b.method) ?? 1e9));
  }

  original(row) {
    const picture = new Picture();
    picture.showRow(row, true);
    picture.image.alt = "original";
    return make("figure", {}, picture.box, make("figcaption", {}, make("strong", { textContent: "original" })));
  }

  figure(row, chosen, columns) {
    const picture = new Picture();
    picture.showRow(row, false);
    picture.image.alt = `by ${row.method}`;
    const numbers = columns.filter((column) => column.kind === "number" && column.name !== "seconds" && typeof row.columns[column.name] === "number");
    const lines = numbers.slice(0, TOLD).map((column) => make("div", { textContent: `${column.name} ${shown(row.columns[column.name])}` }));
    const button = make("button", { type: "button", textContent: row.method });
    button.setAttribute("aria-pressed", row === chosen);
    button.addEventListener("click", () => this.choose(row.image, row.method));
    const figure = make("figure", {}, picture.box, make("figcaption", {}, button, ...lines));
    figure.classList.toggle("chosen", row === chosen);
    return figure;
  }

  sliders(row) {
    const picture = new Picture();
    const strengths = {};
    let waiting, isUnderWay, isOld;
    const render = () => {
      if (isUnderWay) {
        isOld = true;
        return;
      }
      const query = new URLSearchParams({ image: row.image, method: row.method });
      for (const [name, value] of Object.entries(strengths)) if (value) query.append("strength", `${name}~${value}`);
      const address = `live?${query}`;
      isOld = false;
      if (address === picture.address) return;
      isUnderWay = true;
      picture.set(address);
    };
    const rest = () => {
      isUnderWay = false;
      if (isOld) render();
    };
    picture.image.addEventListener("load", rest);
    picture.image.addEventListener("error", rest);
    const rows = this.about.directions.map(({ name, low, high, step }) => {
      const slider = make("input", { type: "range", min: low, max: high, step, value: 0 });
      const output = make("output", { textContent: "0" });
      slider.addEventListener("input", () => {
        strengths[name] = Number(slider.value);
        output.textContent = shown(strengths[name]);
        clearTimeout(waiting);
        waiting = setTimeout(render, RENDER_AFTER);
      });
      return make("label", {}, make("span", { className: "name", textContent: name }), slider, output);
    });
    const back = make("button", { type: "button", textContent: "Back to 0" });
    back.addEventListener("click", () => {
      for (const slider of section.querySelectorAll("input")) {
        slider.value = 0;
        slider.dispatchEvent(new Event("input"));
      }
    });
    const section = make("section", { className: "live" },
      make("h3", { textContent: `Edited live, from ${row.method}` }),
      make("div", { className: "live-parts" }, picture.box, make("div", { className: "sliders" }, ...rows, back)));
    picture.image.alt = "edited live";
    render();
    return section;
  }

  neighbours(row, compared) {
    const quick = this.about.methods.find((one) => one.name === row.method)?.quick_spaces ?? [];
    return neighbours(row, compared, { quick, changed: this.compare, go: this.go });
  }

  table(row) {
    const lines = (names) => names.map((name) => make("tr", {},
      make("th", { scope: "row", textContent: name }), make("td", { textContent: shown(row.columns[name]) })));
    const names = Object.keys(row.columns);
    const body = make("tbody", {}, ...lines(names.filter((name) => !PLACES.has(name))), ...lines(names.filter((name) => PLACES.has(name))));
    return make("details", { open: row.status !== "ok" }, make("summary", { textContent: `All columns of ${row.method}` }), make("table", {}, body));
  }

  files(row) {
    const only = `image_id = '${row.image.replaceAll("'", "''")}'`;
    const link = (href, name) => make("a", { href, download: name, textContent: name });
    const query = new URLSearchParams({ method: row.method, sql: only });
    const links = [];
    if (row.status !== "failed") {
      links.push(link(`picture?${new URLSearchParams({ image: row.image, method: row.method })}`, "picture"));
      links.push(link(`download/codes.npz?${query}`, "codes.npz"));
    }
    links.push(link(`download/selection.sql?${query}`, "selection.sql"));
    return make("p", { className: "files" }, ...links);
  }
}
