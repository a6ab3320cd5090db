// The state of the page is its address: what is in it can be sent, kept and gone back to.

const LISTS = ["with", "status", "range"];
const FIRST = {
  view: "grid", method: "", show: "reconstruction", size: "128", sort: "", order: "desc", minus: "", text: "", sql: "",
  column: "", at: "", image: "", space: "w_plus", metric: "euclidean",
};

/** The state that an address holds. */
export function readAddress(search) {
  const query = new URLSearchParams(search);
  const state = {};
  for (const [name, first] of Object.entries(FIRST)) state[name] = query.get(name) ?? first;
  for (const name of LISTS) state[name] = query.getAll(name);
  return state;
}

/** The address of a state, without what is as at first. */
export function writeAddress(state) {
  const query = new URLSearchParams();
  for (const [name, first] of Object.entries(FIRST)) if (state[name] !== first) query.set(name, state[name]);
  for (const name of LISTS) for (const value of state[name]) query.append(name, value);
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

/** What the server has to know of a state to choose images and their order. */
export function selectionQuery(state) {
  const query = new URLSearchParams();
  for (const name of ["method", "text", "sort", "order", "minus", "sql"]) if (state[name]) query.set(name, state[name]);
  for (const name of ["status", "range"]) for (const value of state[name]) query.append(name, value);
  if (!state.sort) query.delete("order");
  if (state.view !== "compare") query.delete("minus");
  return query;
}
