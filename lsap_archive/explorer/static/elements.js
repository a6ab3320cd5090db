// Making elements and asking the server. Text of an archive only ever becomes text nodes and attributes.

/** An element with properties, attributes (names with a dash or aria) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** What the server answers, or an Error with its sentence. */
export async function ask(path, query, signal) {
  let answer;
  try {
    answer = await fetch(`${path}?${query}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The explorer does not answer: was it stopped?");
  }
  const type = answer.headers.get("content-type") ?? "";
  const content = type.startsWith("application/json") ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) throw new Error(content.error);
  return content;
}

/** A number for people, with some digits. */
export function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

/** The address of a picture of a row: `original` of its original, else of what the method made. */
export function pictureAddress(row, original) {
  const query = original
    ? { image: row.image, original: "1", v: row.original }
    : { image: row.image, method: row.method, v: row.version };
  return `picture?${new URLSearchParams(query)}`;
}

/** A picture in a box; the box says so where no preview was kept. */
export class Picture {
  constructor() {
    this.image = make("img", { alt: "", decoding: "async", draggable: false });
    this.box = make("div", { className: "picture" }, this.image);
    this.image.addEventListener("load", () => {
      this.box.dataset.state = "there";
      this.image.classList.toggle("small", this.image.naturalWidth < 100);
    });
    this.image.addEventListener("error", () => this.tellWhy(this.address));
  }

  /** Shows an address; null shows nothing yet, and a sentence shows why there is no picture. */
  set(address, sentence = "") {
    if (address === this.address) return;
    this.address = address;
    this.box.dataset.none = sentence;
    if (address === null) {
      this.image.removeAttribute("src");
      this.box.dataset.state = "waiting";
    } else if (address === "") {
      this.image.removeAttribute("src");
      this.box.dataset.state = "none";
    } else {
      this.box.dataset.state = "waiting";
      this.image.src = address;
    }
  }

  async tellWhy(address) {
    if (!address) return;
    let sentence = "";
    try {
      await ask(...address.split("?"));
    } catch (error) {
      sentence = error.message;
    }
    if (address !== this.address) return;
    this.box.dataset.none = sentence || "no picture that this browser shows";
    this.box.dataset.state = "none";
  }

  /** Shows the picture of a row, or why there is none. */
  showRow(row, original) {
    if (row.status === "failed" && !original) this.set("", `failed: ${row.reason ?? "no reason"}`);
    else this.set(pictureAddress(row, original));
  }
}
