// The explorer: its address says what is shown, controls change the address, the grid follows.

import { readAddress, selectionQuery, writeAddress } from "./address.js";
import { Detail } from "./detail.js";
import { ask, make } from "./elements.js";
import { Grid, PART } from "./grid.js";
import { Histogram } from "./histogram.js";

const $ = (id) => document.getElementById(id);
const TYPED_AFTER = 300; // milliseconds after the last letter
const OPENED = "opened"; // marks the step of the history that opened an image: closing it goes back
const FIRST_COLUMNS = ["lpips", "mse", "sncd"];

let state = readAddress(location.search);
let about, grid, detail, histogram, columns;
let loaded = ""; // the query of what is in the grid
let asking = new AbortController();
let lastCompared = null; // how neighbours were found in an image that is being closed: the next one is opened so, too

function method() {
  return about.methods.find((one) => one.name === state.method) ?? about.methods[0];
}

function compared() {
  if (state.view !== "compare") return [];
  return [method().name, ...state.with.filter((name) => name !== method().name && about.methods.some((one) => one.name === name))];
}

/** Changes the state; by a step of the history, unless `isSmall`. `mark` is kept with the step. */
function change(changes, isSmall = false, mark = null) {
  state = { ...state, ...changes };
  if (isSmall) history.replaceState(history.state, "", writeAddress(state));
  else history.pushState(mark, "", writeAddress(state));
  follow();
}

/** Without what leaves images out. */
function everything() {
  change({ text: "", sql: "", status: [], range: [], at: "" });
}

function gridQuery() {
  const query = selectionQuery(state);
  for (const name of new Set([state.sort, state.column])) if (columns.get(name)) query.append("value", name);
  for (const name of compared()) query.append("with", name);
  return query;
}

/** Shows what the state says. */
async function follow(around = state.at) {
  fillControls();
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const query = gridQuery();
  const layout = { size: Number(state.size), show: state.show, methods: compared(), column: state.column, sort: state.sort, minus: state.minus };
  if (layout.methods.length && state.minus && state.sort) layout.column = state.sort; // what the difference is of
  const isLoaded = loaded === query.toString();
  if (isLoaded) showLayout(layout);
  else {
    $("grid").setAttribute("aria-busy", "true");
    try {
      await load(query, layout, around, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      tell(error);
    }
    $("grid").removeAttribute("aria-busy");
  }
  if (signal.aborted) return;
  if (state.image) detail.show(state.image, method().name, measureColumns(), { space: state.space, metric: state.metric });
  else detail.close();
}

async function load(query, layout, around, signal) {
  const first = new URLSearchParams(query);
  first.set("limit", PART);
  if (around) first.set("around", around);
  let answer = await ask("api/selection", first, signal);
  const index = answer.index ?? undefined;
  if (index !== undefined && index >= PART) {
    first.set("offset", Math.floor(index / PART) * PART);
    first.delete("around");
    answer = await ask("api/selection", first, signal);
  }
  loaded = query.toString();
  $("sql-error").hidden = true;
  showLayout(layout);
  grid.select(query, answer, answer.offset, index);
  $("everything").hidden = !state.text && !state.sql && !state.status.length && !state.range.length;
  $("status").textContent = `${answer.total.toLocaleString("en")} image${answer.total === 1 ? "" : "s"}`;
  const isTooMuch = answer.total > about.most_codes;
  document.querySelector("[data-file='codes.npz']").hidden = isTooMuch;
  $("codes-limit").hidden = !isTooMuch;
  await showHistogram(signal);
}

async function showHistogram(signal) {
  if (!state.column) return histogram.show(null, [null, null]);
  const query = selectionQuery(state);
  query.set("column", state.column);
  histogram.show(await ask("api/histogram", query, signal), rangeOf(state.column));
}

function tell(error) {
  const place = state.sql ? $("sql-error") : $("status");
  if (!loaded) $("status").textContent = "Nothing is shown.";
  place.textContent = error.message;
  place.hidden = false;
  if (state.sql) openPanel(true);
  place.scrollIntoView({ block: "nearest" });
}

/** Shows what images are chosen by, where there is no room for both. */
function openPanel(isOpen) {
  document.body.classList.toggle("panel-open", isOpen);
  $("panel-toggle").setAttribute("aria-expanded", isOpen);
  $("panel-toggle").textContent = isOpen ? "Done" : "Filter";
}

let shownLayout = "";
function showLayout(layout) {
  if (shownLayout === JSON.stringify(layout)) return;
  shownLayout = JSON.stringify(layout);
  const heads = $("heads");
  heads.hidden = !layout.methods.length;
  heads.replaceChildren(...["original", ...layout.methods].map((name) => make("span", { className: "name", textContent: name, title: name })));
  heads.style.paddingRight = `${4 + $("grid").offsetWidth - $("grid").clientWidth}px`; // the scroll bar's
  grid.restyle(layout);
}

function rangeOf(column) {
  const text = state.range.find((one) => one.slice(0, one.lastIndexOf("~", one.lastIndexOf("~") - 1)) === column);
  if (!text) return [null, null];
  return text.split("~").slice(-2).map((end) => (end === "" ? null : Number(end)));
}

function withRange(column, [low, high]) {
  const others = state.range.filter((one) => !one.startsWith(`${column}~`));
  return low === null && high === null ? others : [...others, `${column}~${low ?? ""}~${high ?? ""}`];
}

function measureColumns() {
  const first = [columns.get(state.sort), columns.get(state.column)].filter((one) => one?.kind === "number");
  return [...new Set([...first, ...about.columns.filter((one) => one.worst), ...about.columns])];
}

function fillControls() {
  const isCompare = state.view === "compare";
  document.body.dataset.view = state.view;
  $("view-grid").setAttribute("aria-pressed", !isCompare);
  $("view-compare").setAttribute("aria-pressed", isCompare);
  $("method").value = method().name;
  $("compared").hidden = !isCompare;
  $("show-row").hidden = isCompare;
  for (const box of $("compared-methods").querySelectorAll("input")) {
    box.checked = compared().includes(box.value);
    box.disabled = box.value === method().name;
  }
  for (const button of $("show").children) button.setAttribute("aria-pressed", button.dataset.show === state.show);
  $("size").value = state.size;
  $("sort").options[0].textContent = /^\s*(select|with|from)\b/i.test(state.sql) ? "as the query says" : "image id";
  $("sort").value = state.sort;
  const worst = columns.get(state.sort)?.worst;
  const named = worst ? { [worst === "high" ? "desc" : "asc"]: "worst first", [worst === "high" ? "asc" : "desc"]: "best first" } : { desc: "highest first", asc: "lowest first" };
  $("order").replaceChildren(...Object.entries(named).map(([value, text]) => make("option", { value, textContent: text })));
  $("order").value = state.order;
  $("order").disabled = !state.sort;
  $("minus-row").hidden = !isCompare || !columns.get(state.sort) || columns.get(state.sort).kind === "text";
  $("minus").replaceChildren(make("option", { value: "", textContent: "none" }), ...compared().slice(1).map((name) => make("option", { value: name, textContent: name })));
  $("minus").value = state.minus;
  if (document.activeElement !== $("text")) $("text").value = state.text;
  for (const box of document.getElementsByName("status")) box.checked = state.status.includes(box.value);
  $("column").value = state.column;
  const range = rangeOf(state.column);
  histogram.setRange(range);
  [$("low"), $("high")].forEach((field, at) => { field.value = range[at] ?? ""; });
  $("ranges").replaceChildren(...state.range.map((text) => {
    const [name, low, high] = [text.slice(0, text.lastIndexOf("~", text.lastIndexOf("~") - 1)), ...text.split("~").slice(-2)];
    const told = low && high ? `${low} ≤ ${name} ≤ ${high}` : low ? `${name} ≥ ${low}` : `${name} ≤ ${high}`;
    const away = make("button", { type: "button", textContent: "×", "aria-label": `without ${told}` });
    away.addEventListener("click", () => change({ range: state.range.filter((one) => one !== text) }));
    return make("li", {}, make("span", { textContent: told }), away);
  }));
  if (document.activeElement !== $("sql")) $("sql").value = state.sql;
  const query = gridQuery();
  query.delete("with");
  for (const link of $("files").children) link.href = `download/${link.dataset.file}?${query}`;
}

function fillOnce() {
  const named = (name) => make("option", { value: name, textContent: name });
  const kinds = { inversion: "Inversions", refinement: "Refinements", edit: "Edits" };
  for (const [kind, label] of Object.entries(kinds)) {
    const some = about.methods.filter((one) => one.kind === kind);
    if (some.length) $("method").append(make("optgroup", { label }, ...some.map((one) => named(one.name))));
  }
  $("compared-methods").append(...about.methods.map((one) => make("label", {},
    make("input", { type: "checkbox", value: one.name }), " ", make("span", { className: "name", textContent: one.name }))));
  const numbers = about.columns.filter((one) => one.kind !== "text");
  $("column").append(...numbers.map((one) => named(one.name)));
  $("sort").append(make("option", { value: "", textContent: "image id" }),
    make("optgroup", { label: "Numbers" }, ...numbers.map((one) => named(one.name))),
    make("optgroup", { label: "Texts" }, ...about.columns.filter((one) => one.kind === "text").map((one) => named(one.name))));
  $("codes-limit").textContent = `codes.npz is there for up to ${about.most_codes.toLocaleString("en")} images`;
}

function wire() {
  const first = () => grid.row(grid.firstIndex())?.image ?? "";
  $("panel").addEventListener("submit", (event) => event.preventDefault());
  $("view-grid").addEventListener("click", () => change({ view: "grid", at: first() }));
  $("view-compare").addEventListener("click", () => {
    const others = about.methods.map((one) => one.name).filter((name) => name !== method().name);
    change({ view: "compare", with: state.with.length ? state.with : others.slice(0, 3), at: first() });
  });
  $("method").addEventListener("change", () => change({ method: $("method").value, minus: "", at: first() }));
  $("compared-methods").addEventListener("change", () => {
    const chosen = [...$("compared-methods").querySelectorAll("input:checked")].map((box) => box.value);
    change({ with: chosen.filter((name) => name !== method().name), minus: chosen.includes(state.minus) ? state.minus : "", at: first() });
  });
  for (const button of $("show").children) button.addEventListener("click", () => change({ show: button.dataset.show, at: first() }));
  $("size").addEventListener("input", () => change({ size: $("size").value, at: first() }, true));
  $("sort").addEventListener("change", () => {
    const column = columns.get($("sort").value);
    const changes = { sort: $("sort").value, order: column?.worst === "low" ? "asc" : "desc", at: "" };
    if (column && column.kind !== "text") changes.column = column.name;
    if (column?.kind === "text") Object.assign(changes, { order: "asc", minus: "" });
    change(changes);
  });
  $("order").addEventListener("change", () => change({ order: $("order").value, at: "" }));
  $("minus").addEventListener("change", () => change({ minus: $("minus").value, at: "" }));
  let typing;
  $("text").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => change({ text: $("text").value, at: first() }, state.text !== ""), TYPED_AFTER);
  });
  for (const box of document.getElementsByName("status")) {
    box.addEventListener("change", () => change({ status: [...document.querySelectorAll("[name=status]:checked")].map((one) => one.value), at: first() }));
  }
  $("column").addEventListener("change", () => change({ column: $("column").value, at: first() }));
  for (const field of [$("low"), $("high")]) {
    field.addEventListener("change", () => {
      const ends = [$("low"), $("high")].map((one) => (one.value.trim() === "" ? null : Number(one.value.replace(",", "."))));
      for (const [at, one] of [$("low"), $("high")].entries()) one.setAttribute("aria-invalid", Number.isNaN(ends[at]));
      if (!ends.some(Number.isNaN)) change({ range: withRange(state.column, ends), at: first() });
    });
  }
  const apply = () => change({ sql: $("sql").value.trim(), at: "" });
  $("sql-apply").addEventListener("click", apply);
  $("sql").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) apply();
  });
  $("sql-clear").addEventListener("click", () => {
    $("sql").value = "";
    $("sql-error").hidden = true;
    change({ sql: "", at: "" });
  });
  $("everything").addEventListener("click", everything);
  $("panel-toggle").addEventListener("click", () => openPanel($("panel-toggle").getAttribute("aria-expanded") !== "true"));
  addEventListener("popstate", () => {
    state = { ...readAddress(location.search), ...lastCompared };
    if (lastCompared) history.replaceState(history.state, "", writeAddress(state));
    lastCompared = null;
    state.column ||= firstColumn();
    follow();
  });
}

/** What the histogram is of when the address does not say. */
function firstColumn() {
  const sorted = columns.get(state.sort);
  if (sorted && sorted.kind !== "text") return sorted.name;
  return FIRST_COLUMNS.find((name) => columns.has(name)) ?? "";
}

async function begin() {
  about = await ask("api/archive", new URLSearchParams());
  columns = new Map(about.columns.map((one) => [one.name, one]));
  if (!about.methods.length) {
    $("status").textContent = "This archive has no published run.";
    return;
  }
  state.column ||= firstColumn();
  let saving;
  grid = new Grid($("grid"), $("spacer"), {
    open: async (index) => {
      const row = await grid.rowAt(index);
      change({ image: row.image }, false, OPENED);
    },
    moved: (index) => {
      clearTimeout(saving);
      saving = setTimeout(() => {
        const image = index ? grid.row(index)?.image : "";
        if (image === undefined || image === state.at) return;
        state.at = image;
        history.replaceState(history.state, "", writeAddress(state));
      }, 200);
    },
    failed: tell,
  });
  histogram = new Histogram($("histogram"), (range) => change({ range: withRange(state.column, range), at: "" }));
  detail = new Detail($("detail"), {
    about,
    closed: () => {
      if (state.image && history.state === OPENED) {
        lastCompared = { space: state.space, metric: state.metric };
        history.back();
      } else if (state.image) change({ image: "" }, true);
      $("grid").focus();
    },
    step: async (by) => {
      const index = Math.max(0, Math.min(grid.cursor + by, grid.total - 1));
      grid.choose(index, false);
      change({ image: (await grid.rowAt(index)).image }, true);
    },
    go: (image) => change({ image }),
    choose: (image, chosen) => change({ image, method: chosen, at: image }, true),
    compare: (compared) => change(compared, true),
  });
  fillOnce();
  wire();
  follow();
}

begin().catch((error) => { $("status").textContent = error.message; });
