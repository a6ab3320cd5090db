// A grid over any number of images: only what is in view is in the page, and rows are asked for by parts.

import { ask, make, Picture, shown } from "./elements.js";

const PART = 200; // rows of an answer
const PARTS_KEPT = 40;
const AT_ONCE = 2; // answers under way
const OVERSCAN = 2; // lines beyond each edge
const TALLEST = 12_000_000; // pixels that every browser can scroll; beyond, the bar goes in larger steps
const SETTLED = 90; // milliseconds without fast scrolling until pictures are asked for
const LINE_OF_TEXT = 17;

export class Grid {
  constructor(box, spacer, { open, moved, failed }) {
    Object.assign(this, { box, spacer, open, moved, failed });
    this.total = 0;
    this.parts = new Map();
    this.cells = new Map();
    this.spare = [];
    this.query = null;
    this.cursor = 0;
    this.top = 0; // of what is in view, in pixels of the whole
    this.expected = 0;
    this.layout = { size: 128, show: "reconstruction", methods: [], column: "", sort: "", picturesOf: 1 };
    box.addEventListener("scroll", () => this.onScroll(), { passive: true });
    box.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    box.addEventListener("keydown", (event) => this.onKey(event));
    box.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-index]");
      if (cell) this.choose(Number(cell.dataset.index), true);
    });
    new ResizeObserver(() => this.resize()).observe(box);
  }

  /** Other images, or another order: `answer` is the first part of them. */
  select(query, answer, offset, around) {
    this.query = query;
    this.aborting?.abort();
    this.aborting = new AbortController();
    this.parts = new Map();
    this.underWay = new Set();
    this.total = answer.total;
    this.parts.set(offset / PART, answer.rows);
    this.empty();
    this.measure();
    this.goTo(around ?? 0, around !== undefined);
  }

  /** Another look of the same images. */
  restyle(layout) {
    const first = this.firstIndex();
    this.layout = layout;
    this.box.dataset.view = layout.methods.length ? "compare" : "grid";
    this.empty();
    this.measure();
    this.goTo(first, true);
  }

  row(index) {
    const rows = this.parts.get(Math.floor(index / PART));
    return rows?.[index % PART];
  }

  firstIndex() {
    return Math.min(Math.round(this.top / this.lineHeight || 0) * (this.columns || 1), Math.max(this.total - 1, 0));
  }

  resize() {
    const first = this.firstIndex();
    const before = `${this.width} ${this.height}`;
    if (before === `${this.box.clientWidth} ${this.box.clientHeight}`) return;
    this.empty();
    this.measure();
    this.goTo(first, true);
  }

  measure() {
    const { size, show, methods, column, sort } = this.layout;
    this.width = this.box.clientWidth;
    this.height = this.box.clientHeight;
    const values = (column ? 1 : 0) + (sort && sort !== column ? 1 : 0);
    if (methods.length) {
      this.columns = 1;
      this.cellWidth = this.width;
      this.picture = Math.max(40, Math.min(size, Math.floor((this.width - 16) / (methods.length + 1)) - 10));
      this.lineHeight = this.picture + 20 + 2 * LINE_OF_TEXT;
    } else {
      const pictures = show === "both" ? 2 : 1;
      const wanted = size * pictures + 12;
      this.columns = Math.max(1, Math.floor(this.width / wanted));
      this.cellWidth = Math.floor(this.width / this.columns);
      this.picture = Math.floor((this.cellWidth - 12) / pictures);
      if (this.columns > 1 || pictures > 1) this.picture = Math.min(this.picture, Math.round(size * 1.4));
      this.lineHeight = this.picture + 14 + (1 + values) * LINE_OF_TEXT;
    }
    this.whole = Math.ceil(this.total / this.columns) * this.lineHeight;
    const tall = Math.min(this.whole, TALLEST);
    this.factor = this.whole > TALLEST ? (this.whole - this.height) / (tall - this.height) : 1;
    this.spacer.style.height = `${tall}px`;
    this.box.style.setProperty("--picture", `${this.picture}px`);
    this.box.style.setProperty("--cell", `${this.cellWidth}px`);
    this.box.style.setProperty("--line", `${this.lineHeight}px`);
  }

  goTo(index, isExact) {
    this.cursor = Math.max(0, Math.min(index, this.total - 1));
    const line = Math.floor(this.cursor / this.columns) * this.lineHeight;
    this.scrollWhole(isExact ? line : 0);
    this.draw();
  }

  /** Scrolls so far that an image is in view. */
  reveal(index) {
    const line = Math.floor(index / this.columns) * this.lineHeight;
    if (line < this.top) this.scrollWhole(line);
    else if (line + this.lineHeight > this.top + this.height) this.scrollWhole(line + this.lineHeight - this.height);
    this.draw();
  }

  scrollWhole(top) {
    this.top = Math.max(0, Math.min(top, this.whole - this.height));
    this.box.scrollTop = this.top / this.factor;
    this.expected = this.box.scrollTop;
  }

  onScroll() {
    if (Math.abs(this.box.scrollTop - this.expected) > 1) {
      this.top = Math.max(0, this.box.scrollTop * this.factor);
      this.expected = this.box.scrollTop;
    }
    this.soon();
  }

  onWheel(event) {
    if (this.factor === 1 || event.ctrlKey) return;
    event.preventDefault();
    const unit = event.deltaMode === 1 ? this.lineHeight / 3 : event.deltaMode === 2 ? this.height : 1;
    this.scrollWhole(this.top + event.deltaY * unit);
    this.soon();
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.height / this.lineHeight)) * this.columns;
    const steps = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns,
      PageDown: page, PageUp: -page, Home: -this.total, End: this.total,
    };
    if (event.key === "Enter" || event.key === " ") this.choose(this.cursor, true);
    else if (event.key in steps && !event.ctrlKey && !event.altKey && !event.metaKey) {
      this.choose(this.cursor + steps[event.key], false);
    } else return;
    event.preventDefault();
  }

  choose(index, opens) {
    if (!this.total) return;
    this.cursor = Math.max(0, Math.min(index, this.total - 1));
    this.reveal(this.cursor);
    if (opens) this.open(this.cursor);
  }

  soon() {
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(); });
  }

  empty() {
    for (const cell of this.cells.values()) this.putAway(cell);
    this.cells.clear();
    for (const cell of this.spare) cell.element.remove();
    this.spare = [];
  }

  putAway(cell) {
    cell.element.hidden = true;
    cell.element.removeAttribute("id");
    cell.element.removeAttribute("aria-selected");
    for (const picture of cell.pictures) picture.set(null);
    cell.row = null;
    this.spare.push(cell);
  }

  draw() {
    if (!this.query) return;
    const line = this.lineHeight;
    const isFast = Math.abs(this.top - (this.drawnTop ?? this.top)) > 1.5 * this.height;
    this.drawnTop = this.top;
    clearTimeout(this.settling);
    if (isFast) this.settling = setTimeout(() => this.draw(), SETTLED);
    const first = Math.max(0, (Math.floor(this.top / line) - OVERSCAN) * this.columns);
    const last = Math.min(this.total, (Math.ceil((this.top + this.height) / line) + OVERSCAN) * this.columns);
    for (const [index, cell] of this.cells) {
      if (index < first || index >= last) {
        this.cells.delete(index);
        this.putAway(cell);
      }
    }
    const shift = this.box.scrollTop - this.top; // of what is drawn, where the bar goes in larger steps
    for (let index = first; index < last; index++) {
      let cell = this.cells.get(index);
      if (!cell) {
        cell = this.spare.pop() ?? this.newCell();
        this.cells.set(index, cell);
        cell.element.hidden = false;
        cell.element.dataset.index = index;
        cell.element.id = `cell-${index}`;
        cell.element.setAttribute("aria-posinset", index + 1);
        cell.element.setAttribute("aria-setsize", this.total);
      }
      const x = (index % this.columns) * this.cellWidth;
      const y = Math.floor(index / this.columns) * line + shift;
      cell.element.style.transform = `translate(${x}px, ${y}px)`;
      cell.element.setAttribute("aria-selected", index === this.cursor);
      this.fill(cell, this.row(index), isFast);
    }
    if (this.total) this.box.setAttribute("aria-activedescendant", `cell-${this.cursor}`);
    else this.box.removeAttribute("aria-activedescendant");
    this.askForParts(first, last);
    this.moved(this.firstIndex());
  }

  newCell() {
    const { show, methods } = this.layout;
    const number = methods.length ? methods.length + 1 : show === "both" ? 2 : 1;
    const pictures = Array.from({ length: number }, () => new Picture());
    const values = pictures.map(() => make("span", { className: "value" }));
    const name = make("div", { className: "name" });
    const caption = make("div", { className: "caption" });
    const element = make("div", { className: "cell", role: "option" });
    if (methods.length) {
      const columns = pictures.map((picture, at) => make("div", { className: "column" }, picture.box, values[at]));
      element.append(make("div", { className: "columns" }, ...columns), name);
    } else {
      element.append(make("div", { className: "pictures" }, ...pictures.map((one) => one.box)), name, caption);
    }
    this.spacer.append(element);
    return { element, pictures, values, name, caption, row: null };
  }

  fill(cell, row, isFast) {
    if (row === undefined) {
      if (cell.row !== undefined) {
        cell.row = undefined;
        cell.name.textContent = "…";
        cell.caption.textContent = "";
        for (const value of cell.values) value.textContent = "";
      }
      return;
    }
    if (cell.row !== row) {
      cell.row = row;
      cell.name.textContent = row.image;
      cell.element.title = row.image;
      cell.element.dataset.status = row.status;
      cell.hasPictures = false;
      if (this.layout.methods.length) this.fillValues(cell, row);
      else this.fillCaption(cell, row);
    }
    if (!cell.hasPictures && !isFast) {
      cell.hasPictures = true;
      this.fillPictures(cell, row);
    }
  }

  fillCaption(cell, row) {
    const { column, sort } = this.layout;
    const names = [...new Set([sort, column])].filter((name) => name);
    const lines = names.map((name) => `${name} ${shown(row.values[name]) || "–"}`);
    cell.caption.replaceChildren(...lines.map((line) => make("div", { textContent: line })));
    cell.element.setAttribute("aria-label", [row.image, row.status === "ok" ? "" : row.status, ...lines].join(", "));
  }

  fillValues(cell, row) {
    const { column, methods, minus } = this.layout;
    const told = methods.map((method) => (row.others[method] ? shown(row.others[method].values[column]) || "–" : "not run"));
    methods.forEach((method, at) => { cell.values[at + 1].textContent = told[at]; });
    const [a, b] = [methods[0], minus].map((method) => row.others[method]?.values[column]);
    const difference = minus && typeof a === "number" && typeof b === "number" ? `, difference ${shown(a - b)}` : "";
    cell.name.textContent = `${row.image} · ${column}${difference}`;
    cell.element.setAttribute("aria-label", [row.image, ...methods.map((method, at) => `${method} ${told[at]}`)].join(", "));
  }

  fillPictures(cell, row) {
    const { show, methods } = this.layout;
    if (methods.length) {
      cell.pictures[0].showRow(row, true);
      methods.forEach((method, at) => {
        const other = row.others[method];
        if (other) cell.pictures[at + 1].showRow(other, false);
        else cell.pictures[at + 1].set("", "not run");
      });
    } else if (show === "both") {
      cell.pictures[0].showRow(row, true);
      cell.pictures[1].showRow(row, false);
    } else cell.pictures[0].showRow(row, show === "original");
  }

  async askForParts(first, last) {
    for (let part = Math.floor(first / PART); part * PART < last; part++) {
      if (this.parts.has(part) || this.underWay.has(part) || this.underWay.size >= AT_ONCE) continue;
      const { query, aborting, underWay } = this;
      underWay.add(part);
      try {
        const rows = await this.askForPart(part, aborting.signal);
        if (query !== this.query) return;
        this.parts.set(part, rows);
        if (this.parts.size > PARTS_KEPT) this.parts.delete(this.parts.keys().next().value);
        underWay.delete(part);
        this.soon();
      } catch (error) {
        underWay.delete(part);
        if (error.name !== "AbortError") this.failed(error);
      }
    }
  }

  async askForPart(part, signal) {
    const query = new URLSearchParams(this.query);
    query.set("offset", part * PART);
    query.set("limit", PART);
    return (await ask("api/selection", query, signal)).rows;
  }

  /** Row of any index, asked for where it is not there. */
  async rowAt(index) {
    if (!this.row(index)) {
      const part = Math.floor(index / PART);
      this.parts.set(part, await this.askForPart(part));
    }
    return this.row(index);
  }
}

export { PART };
