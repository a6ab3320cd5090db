// A histogram in which a range is drawn with the pointer, or moved by two handles with the keyboard.

import { make, shown } from "./elements.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 72;
const SHORTEST = 3; // pixels that a pointer has to move before it is a range

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export class Histogram {
  constructor(box, changed) {
    Object.assign(this, { box, changed });
    this.svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.bars = draw("g", {});
    this.brush = draw("rect", { class: "brush", y: 0, height: HEIGHT });
    this.svg.append(this.brush, this.bars);
    this.handles = ["lowest", "highest"].map((end, at) => {
      const handle = make("div", { className: "handle", role: "slider", tabIndex: 0, "aria-label": `${end} value shown` });
      handle.addEventListener("keydown", (event) => this.onKey(event, at));
      return handle;
    });
    this.ends = [make("span"), make("span")];
    this.note = make("p", { className: "soft" });
    this.plot = make("div", { className: "plot", hidden: true }, this.svg, ...this.handles);
    box.append(this.plot, make("div", { className: "axis" }, ...this.ends), this.note);
    this.plot.addEventListener("pointerdown", (event) => this.onDown(event));
  }

  /** Shows what the server told of a column, and the range [low, high] of it; null is an open end. */
  show(told, range) {
    this.told = told;
    const isThere = told !== null && told.low !== null;
    this.plot.hidden = !isThere;
    this.note.textContent = told === null ? "" : isThere ? "" : "no finite value in this selection";
    if (isThere && told.missing) this.note.textContent = `${told.missing} without a finite value`;
    this.ends.forEach((end, at) => { end.textContent = isThere ? shown([told.low, told.high][at]) : ""; });
    if (!isThere) return;
    const most = Math.max(...told.counts, 1);
    const width = WIDTH / told.counts.length;
    this.bars.replaceChildren(...told.counts.map((count, at) => {
      const height = count ? Math.max(1.5, (count / most) * (HEIGHT - 4)) : 0;
      return draw("rect", { x: at * width + 0.25, width: width - 0.5, y: HEIGHT - height, height });
    }));
    this.setRange(range);
  }

  setRange(range) {
    this.range = range;
    if (!this.told || this.told.low === null) return;
    const [low, high] = [range[0] ?? this.told.low, range[1] ?? this.told.high];
    const [from, to] = [this.place(low), this.place(high)];
    const isOpen = range[0] === null && range[1] === null;
    this.brush.setAttribute("x", from * WIDTH);
    this.brush.setAttribute("width", isOpen ? 0 : Math.max(1, (to - from) * WIDTH));
    [...this.bars.children].forEach((bar, at) => {
      const middle = (at + 0.5) / this.told.counts.length;
      bar.classList.toggle("out", middle < from || middle > to);
    });
    this.handles.forEach((handle, at) => {
      handle.style.left = `${100 * [from, to][at]}%`;
      handle.setAttribute("aria-valuemin", this.told.low);
      handle.setAttribute("aria-valuemax", this.told.high);
      handle.setAttribute("aria-valuenow", [low, high][at]);
      handle.setAttribute("aria-valuetext", shown([low, high][at]));
    });
  }

  place(value) {
    const { low, high } = this.told;
    return high > low ? Math.max(0, Math.min(1, (value - low) / (high - low))) : 0.5;
  }

  /** The range between two places from 0 to 1; an end at the edge is open. */
  between(from, to) {
    const { low, high } = this.told;
    const value = (place) => Number((low + place * (high - low)).toPrecision(4));
    return [from <= 0 ? null : value(from), to >= 1 ? null : value(to)];
  }

  onDown(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    const edge = this.plot.getBoundingClientRect();
    const at = (one) => Math.max(0, Math.min(1, (one.clientX - edge.left) / edge.width));
    const onHandle = this.handles.indexOf(event.target);
    const start = onHandle < 0 ? at(event) : this.place(this.range[1 - onHandle] ?? [this.told.high, this.told.low][onHandle]);
    let isRange = onHandle >= 0;
    this.plot.setPointerCapture(event.pointerId);
    const onMove = (moved) => {
      isRange ||= Math.abs(moved.clientX - event.clientX) >= SHORTEST;
      if (isRange) this.setRange(this.between(Math.min(start, at(moved)), Math.max(start, at(moved))));
    };
    const onUp = () => {
      this.plot.removeEventListener("pointermove", onMove);
      if (!isRange) this.setRange([null, null]); // a click puts the range away
      this.changed(this.range);
    };
    this.plot.addEventListener("pointermove", onMove);
    this.plot.addEventListener("pointerup", onUp, { once: true });
    this.plot.addEventListener("pointercancel", onUp, { once: true });
  }

  onKey(event, at) {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -6, PageUp: 6 }[event.key];
    const ends = { Home: 0, End: 1 };
    if (!step && !(event.key in ends)) return;
    event.preventDefault();
    const places = [this.place(this.range[0] ?? this.told.low), this.place(this.range[1] ?? this.told.high)];
    places[at] = step ? places[at] + step / this.told.counts.length : ends[event.key];
    if (at === 0) places[0] = Math.min(places[0], places[1]);
    else places[1] = Math.max(places[0], places[1]);
    this.setRange(this.between(...places));
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.changed(this.range), 250);
  }
}
