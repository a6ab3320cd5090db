// The images whose codes are nearest to that of one: in a space and by a measure that are chosen beside it.

import { ask, make, Picture, shown } from "./elements.js";

const WANTED = 12;
const SPACES = { w_plus: "W+", w: "W", s_n: "S^N" };
const METRICS = { euclidean: "Euclidean", cosine: "cosine" };

/**
 * A section about a row. `compared` is the space and the metric at first; `quick` are the spaces in which nobody needs to
 * be asked before; `changed` is told of others, and `go` of an image that was chosen.
 */
export function neighbours(row, compared, { quick, changed, go }) {
  let { space, metric } = compared;
  let wasAsked = false;
  let newest = 0;
  const list = make("div", { className: "figures small" });
  const tell = (className, textContent) => list.replaceChildren(make("p", { className, textContent }));

  const find = async () => {
    const mine = (newest += 1);
    tell("soft", "comparing …");
    try {
      const query = new URLSearchParams({ image: row.image, method: row.method, k: WANTED, space, metric });
      const found = (await ask("api/neighbours", query)).rows;
      if (mine !== newest) return;
      list.replaceChildren(...found.map((one) => neighbour(one, go)));
      if (!found.length) tell("soft", "there is no other");
    } catch (error) {
      if (mine === newest) tell("error", error.message);
    }
  };
  const findOrOffer = () => {
    if (wasAsked || !(space in SPACES) || quick.includes(space)) return find();
    newest += 1;
    const button = make("button", { type: "button", textContent: "Compare with all codes" });
    button.addEventListener("click", () => {
      wasAsked = true;
      find();
    });
    return list.replaceChildren(button);
  };

  const inSpace = choice("compared in", SPACES, space);
  const byMetric = choice("compared by", METRICS, metric);
  for (const control of [inSpace, byMetric]) {
    control.addEventListener("change", () => {
      [space, metric] = [inSpace.value, byMetric.value];
      changed({ space, metric });
      findOrOffer();
    });
  }
  findOrOffer();
  const heading = make("h3", { textContent: `Nearest codes of ${row.method}` });
  return make("section", { className: "neighbours" }, make("div", { className: "heading" }, heading, inSpace, byMetric), list);
}

function choice(label, names, value) {
  const options = Object.entries(names).map(([name, textContent]) => make("option", { value: name, textContent }));
  const control = make("select", { "aria-label": label }, ...options);
  control.value = value;
  return control;
}

function neighbour(row, go) {
  const picture = new Picture();
  picture.showRow(row, false);
  const button = make("button", { type: "button", className: "plain", title: row.image }, picture.box,
    make("span", { className: "name", textContent: row.image }), make("span", { className: "value", textContent: shown(row.distance) }));
  button.addEventListener("click", () => go(row.image, row.method));
  return make("figure", {}, button);
}
