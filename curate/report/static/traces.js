// The trace browser: filters, order, pages, permalinks, comparison and export.
const PER_PAGE = 50;
const FLAGS = [["", "any"], ["0", "no"], ["1", "yes"]];
const browser = document.querySelector(".browser");
let data = null, rows = [], texts = new Map(), state = null;

const start = () => ({
  set: data.sets[0]?.[0] ?? "", facets: {}, text: "", limits: {}, sort: "problem", down: false,
  page: 1, trace: "", beside: "", diff: false,
});

/** Reads the rows that the page holds: once, and after each change of a live page. */
const readRows = () => {
  data = JSON.parse(by("rows").content.textContent);
  texts = new Map();
  rows = data.rows.map(([id, sets, places, answer, numbers], at) => {
    const row = { id, sets, answer, at, values: {}, shown: {}, numbers: {} };
    data.facets.forEach(([name, , values], i) => { [row.values[name], row.shown[name]] = values[places[i]]; });
    data.numbers.forEach(([name], i) => { row.numbers[name] = numbers[i]; });
    return row;
  });
};

const article = (row) => by("t-" + row.at).content;
const rowOf = (id) => rows.find((row) => row.id === id);
const textOf = (row) => {
  if (!texts.has(row.at)) texts.set(row.at, article(row).textContent.toLowerCase());
  return texts.get(row.at);
};
const sampled = (row) => article(row).querySelector("pre b").textContent;
const briefly = (row) => `${row.shown.recipe}, ${row.values.verdict}, ${row.id.slice(0, 8)}`;

// -- the address ----------------------------------------------------------------------------------

/** The state as a fragment; what is at its default is left out. */
const fragmentOf = (chosen) => {
  const parts = new URLSearchParams(), normal = start();
  for (const name of ["set", "text", "sort", "page", "trace", "beside"]) {
    if (String(chosen[name]) !== String(normal[name])) parts.append(name, chosen[name]);
  }
  for (const [name, value] of Object.entries(chosen.facets)) parts.append(name, value);
  for (const [name, [low, high]] of Object.entries(chosen.limits)) parts.append("limit", [name, low, high].join(":"));
  if (chosen.down) parts.append("order", "descending");
  if (chosen.diff) parts.append("diff", "1");
  return parts.toString();
};

/** The state of a fragment, and the parts of it that this page does not know. */
const stateOf = (fragment) => {
  const parts = new URLSearchParams(fragment), chosen = start(), unknown = [];
  const numbers = new Map(data.numbers.map((one) => [one[0], one]));
  for (const [name, value] of parts) {
    const facet = data.facets.find((one) => one[0] === name);
    if (facet && facet[2].some(([known]) => known === value)) chosen.facets[name] = value;
    else if (name === "set" && data.sets.some(([label]) => label === value)) chosen.set = value;
    else if (name === "text") chosen.text = value;
    else if (name === "sort" && orders().some(([known]) => known === value)) chosen.sort = value;
    else if (name === "order") chosen.down = value === "descending";
    else if (name === "page" && Number(value) >= 1) chosen.page = Math.floor(Number(value));
    else if ((name === "trace" || name === "beside") && rowOf(value)) chosen[name] = value;
    else if (name === "diff") chosen.diff = value === "1";
    else if (name === "limit" && numbers.has(value.split(":")[0])) {
      const [column, low, high] = value.split(":");
      chosen.limits[column] = [low, high ?? ""].map((end) => (Number.isFinite(Number(end || NaN)) ? end : ""));
    } else unknown.push(`${name} ${value}`);
  }
  if (!chosen.trace) chosen.beside = "";
  if (!chosen.beside) chosen.diff = false;
  return [chosen, unknown];
};

const isState = (fragment) => fragment.includes("=");

/** Writes the state into the address. Opening a trace adds a step that Back undoes. */
const remember = (step = false) => {
  const fragment = fragmentOf(state), present = location.hash.slice(1);
  if (fragment === present || (!fragment && !isState(present))) return;
  const address = fragment ? "#" + fragment : location.pathname + location.search;
  history[step ? "pushState" : "replaceState"](null, "", address);
};

// -- which traces ---------------------------------------------------------------------------------

const within = (row, name, [low, high]) => {
  const value = row.numbers[name];
  return value !== null && (low === "" || value >= Number(low)) && (high === "" || value <= Number(high));
};

const fits = (row) => {
  const set = data.sets.findIndex(([label]) => label === state.set), wanted = state.text.trim().toLowerCase();
  return row.sets.includes(set)
    && Object.entries(state.facets).every(([name, value]) => row.values[name] === value)
    && Object.entries(state.limits).every(([name, limit]) => within(row, name, limit))
    && (!wanted || textOf(row).includes(wanted));
};

const orders = () => [...data.facets.map(([name]) => [name, "text"]), ...data.numbers];

/** The traces that meet the filters, in order. Missing numbers come last either way. */
const chosenRows = () => {
  const facet = data.facets.find(([name]) => name === state.sort), sign = state.down ? -1 : 1;
  const place = facet && new Map(facet[2].map(([value, shown], i) => [value, state.sort === "problem" ? i : shown]));
  const key = (row) => (facet ? place.get(row.values[state.sort]) : row.numbers[state.sort]);
  const compared = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === y) return a.at - b.at;
    if (x === null || y === null) return x === null ? 1 : -1;
    return (x < y ? -1 : 1) * sign;
  };
  return rows.filter(fits).sort(compared);
};

// -- the list -------------------------------------------------------------------------------------

/** A number of a trace as text; yes or no for a flag. */
const readable = (name, value) => {
  if (value === null || value === undefined) return "–";
  if (data.numbers.some(([known, kind]) => known === name && kind === "flag")) return value ? "yes" : "no";
  return typeof value === "number" ? Number(value.toFixed(3)).toLocaleString("en") : value;
};

const badge = (verdict) => make("span", { className: "badge " + verdict }, verdict);

const entry = (row) => {
  const name = data.numbers.some(([known]) => known === state.sort) ? state.sort : "completion_tokens";
  const value = row.numbers[name];
  const measure = value === null || value === undefined ? ""
    : name === "completion_tokens" ? `${readable(name, value)} tokens` : `${spaced(name)} ${readable(name, value)}`;
  const step = row.numbers.policy_step === null ? "" : `, step ${row.numbers.policy_step}`;
  const button = press("", () => open(row));
  button.append(
    badge(row.values.verdict), ` ${row.shown.recipe}${step} `, make("span", { className: "q" }, measure),
    make("span", { className: "a" }, row.answer || "no text"),
  );
  if (state.sort !== "problem") button.append(make("span", { className: "q" }, row.shown.problem));
  if (row.id === state.trace) button.setAttribute("aria-current", "true");
  const item = make("li", {}, button);
  item.dataset.trace = row.id;
  return item;
};

const heading = (problem, all) => {
  const own = all.filter((row) => row.values.problem === problem.values.problem);
  const right = own.filter((row) => row.values.verdict === "correct").length;
  return make("li", { className: "problem" }, problem.shown.problem,
    make("span", { className: "q" }, ` ${right} of ${own.length} correct`));
};

const showList = () => {
  const all = chosenRows(), pages = Math.max(1, Math.ceil(all.length / PER_PAGE));
  state.page = Math.min(state.page, pages);
  const first = (state.page - 1) * PER_PAGE, items = [];
  let problem = null;
  for (const row of all.slice(first, first + PER_PAGE)) {
    if (state.sort === "problem" && row.values.problem !== problem) items.push(heading(row, all));
    problem = row.values.problem;
    items.push(entry(row));
  }
  by("list").replaceChildren(...items);
  by("shown").textContent = `${all.length} shown`;
  by("page").textContent = `page ${state.page} of ${pages}`;
  by("previous").disabled = state.page === 1;
  by("next").disabled = state.page === pages;
};

// -- one trace, two traces, their differences -----------------------------------------------------

const permalink = (row) => location.href.split("#")[0] + "#" + fragmentOf({ ...start(), set: state.set, trace: row.id });

const tools = (row, ...more) => {
  const others = rows.filter((other) => other !== row && (other.values.problem === row.values.problem || other.id === state.beside));
  const choice = make("select", { className: "beside" }, new Option("none", ""),
    ...others.map((other) => new Option(briefly(other), other.id)));
  choice.value = state.beside;
  choice.addEventListener("change", () => { state.beside = choice.value; state.diff = false; showPanes(); remember(); });
  return make("div", { className: "tools" },
    press("copy id", (button) => copy(row.id, button)),
    press("copy link", (button) => copy(permalink(row), button)),
    press("only this problem", () => { state.facets = { problem: row.values.problem }; state.page = 1; showAll(); remember(); }),
    make("label", {}, "compare with ", choice), ...more);
};

const besideTools = (row) => make("div", { className: "tools" },
  press("copy id", (button) => copy(row.id, button)),
  press("differences", () => { state.diff = true; showPanes(); remember(); }, "to-diff"),
  press("close", () => { state.beside = ""; state.diff = false; showPanes(); remember(); }));

/** Facts in which two traces differ, as a table. */
const factsApart = (a, b) => {
  const facts = (row) => ({ ...row.shown, answer: row.answer, ...row.numbers });
  const [left, right] = [facts(a), facts(b)];
  const lines = Object.keys(left).filter((name) => left[name] !== right[name]).map((name) => make("tr", {},
    make("th", { scope: "row" }, spaced(name)), make("td", {}, readable(name, left[name])), make("td", {}, readable(name, right[name]))));
  const head = make("tr", {}, make("th"), make("th", {}, make("del", {}, a.id.slice(0, 8))), make("th", {}, make("ins", {}, b.id.slice(0, 8))));
  return make("div", { className: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)));
};

const showDiff = (a, b) => {
  const [text, note] = diffOf(sampled(a), sampled(b));
  by("pane-diff").append(
    tools(a, press("side by side", () => { state.diff = false; showPanes(); remember(); })),
    make("h4", {}, "Differences of the completions"),
    make("p", { className: "note" }, make("del", {}, "only in ", a.id.slice(0, 8)), "  ",
      make("ins", {}, "only in ", b.id.slice(0, 8)), `  ${note}`),
    text, make("h4", {}, "Differences in what was measured"), factsApart(a, b));
};

const showPanes = () => {
  const row = rowOf(state.trace), other = rowOf(state.beside);
  const diff = Boolean(row && other && state.diff);
  by("pane-a").hidden = diff;
  by("pane-b").hidden = diff || !other;
  by("pane-diff").hidden = !diff;
  for (const id of ["pane-a", "pane-b", "pane-diff"]) by(id).replaceChildren();
  browser.classList.toggle("two", Boolean(row && other && !diff));
  if (diff) { showDiff(row, other); return; }
  if (row) by("pane-a").append(tools(row), article(row).cloneNode(true));
  else by("pane-a").append(make("p", { className: "empty" }, "Choose a trace."));
  if (other) by("pane-b").append(besideTools(other), article(other).cloneNode(true));
};

const mark = () => {
  for (const item of by("list").children) {
    const current = item.dataset.trace !== undefined && item.dataset.trace === state.trace;
    if (current) item.firstElementChild.setAttribute("aria-current", "true");
    else item.firstElementChild?.removeAttribute("aria-current");
  }
};

const open = (row) => {
  state.trace = row.id;
  const other = rowOf(state.beside);
  if (!other || other === row || other.values.problem !== row.values.problem) state.beside = "";
  state.diff = state.diff && state.beside !== "";
  mark();
  showPanes();
  remember(true);
};

// -- filters --------------------------------------------------------------------------------------

/** Gives a list its choices, unless the reader is in it. The chosen value stays if it is not among them. */
const fill = (select, options, value) => {
  if (select === document.activeElement && select.options.length && select.value === value) return;
  if (!options.some(([key]) => key === value)) options = [...options, [value, value]];
  select.replaceChildren(...options.map(([key, label]) => new Option(label, key)));
  select.value = value;
};

const spaced = (name) => name.replaceAll("_", " ");

const showFilters = () => {
  fill(by("set"), data.sets.map(([label, held, total]) => [label, `${label} (${held} of ${total.toLocaleString("en")})`]), state.set);
  for (const [name, , values] of data.facets) fill(by(name), [["", "any"], ...values], state.facets[name] ?? "");
  fill(by("sort"), orders().map(([name]) => [name, spaced(name)]), state.sort);
  fill(by("signal"), [["", "a signal …"], ...data.numbers.map(([name]) => [name, spaced(name)])], "");
  by("search").value = state.text;
  by("direction").textContent = state.down ? "descending" : "ascending";
  by("limits").replaceChildren(...Object.keys(state.limits).map(limitOf));
};

/** The fields that limit a signal. */
const limitOf = (name) => {
  const [, kind] = data.numbers.find(([known]) => known === name), limit = state.limits[name];
  const end = (i, label) => {
    const field = make("input", { type: "number", step: "any", value: limit[i], placeholder: label, ariaLabel: `${spaced(name)} ${label}` });
    field.addEventListener("input", () => { limit[i] = field.value; narrow(); });
    return field;
  };
  const choice = make("select", { ariaLabel: spaced(name) });
  fill(choice, FLAGS, limit[0]);
  choice.addEventListener("change", () => { limit[0] = limit[1] = choice.value; narrow(); });
  const fields = kind === "flag" ? [choice] : [end(0, "from"), end(1, "to")];
  const remove = press("×", () => { delete state.limits[name]; showFilters(); narrow(); });
  remove.ariaLabel = `no limit on ${spaced(name)}`;
  return make("span", { className: "limit" }, spaced(name) + " ", ...fields, remove);
};

const narrow = () => { state.page = 1; showList(); remember(); };
const showAll = () => { showFilters(); showList(); showPanes(); };

// -- export ---------------------------------------------------------------------------------------

const sqlText = (text) => "'" + text.replaceAll("'", "''") + "'";

/** A double-quoted scalar of YAML in ASCII. */
const yamlText = (text) => '"' + [...text].map((sign) => {
  const point = sign.codePointAt(0);
  if (sign === '"' || sign === "\\") return "\\" + sign;
  if (point >= 32 && point < 127) return sign;
  return point > 0xffff ? "\\U" + point.toString(16).padStart(8, "0") : "\\u" + point.toString(16).padStart(4, "0");
}).join("") + '"';

/** The filters as [name, SQL], or a sentence that says what has no SQL. */
const conditions = () => {
  const [label, , , where] = data.sets.find(([known]) => known === state.set);
  if (state.text.trim()) return "A search for text has no rule: export the rule for these traces.";
  if (where === null) return `The set “${label}” is more than a condition on one trace: export the rule for these traces.`;
  const parts = where === "TRUE" ? [] : [["set", where]];
  for (const [name, sql] of data.facets) {
    if (name in state.facets) parts.push([name, `${sql} = ${sqlText(state.facets[name])}`]);
  }
  for (const [name, , sql] of data.numbers) {
    const [low, high] = state.limits[name] ?? ["", ""], ends = [];
    if (name in state.limits) ends.push(`${sql} IS NOT NULL`);
    if (low !== "") ends.push(`${sql} >= ${Number(low)}`);
    if (high !== "") ends.push(`${sql} <= ${Number(high)}`);
    if (ends.length) parts.push([name, ends.join(" AND ")]);
  }
  return parts;
};

const rulesOf = (about, parts) => [
  "# curate filter chosen.yaml", "name: chosen", `about: ${yamlText(about)}`,
  parts.length ? "rules:" : "rules: []",
  ...parts.flatMap(([name, keep]) => [
    `  - name: ${yamlText("chosen " + spaced(name))}`, `    keep: ${yamlText(keep)}`, `    reason: ${yamlText("Chosen on the report page.")}`,
  ]), "",
].join("\n");

/** [text, name of the file, note] of the selection. */
const exportOf = (kind) => {
  const ids = chosenRows().map((row) => row.id);
  const held = `${ids.length} traces, those on this page that meet the filters`;
  if (kind === "ids") return [ids.join("\n") + "\n", "ids.txt", held + "."];
  if (kind === "traces") {
    const keep = ids.length ? `trace_id IN (${ids.map(sqlText).join(", ")})` : "FALSE";
    return [rulesOf(`${ids.length} traces chosen on the report page.`, [["traces", keep]]), "chosen.yaml", held + ": curate filter chosen.yaml"];
  }
  const parts = conditions();
  if (typeof parts === "string") return ["", "", parts];
  return [rulesOf("Conditions chosen on the report page.", parts), "chosen.yaml",
    "All traces of the warehouse that meet the conditions, also those that are not on this page: curate filter chosen.yaml"];
};

const showExport = () => {
  const [text, file, note] = exportOf(by("as").value);
  by("export-pane").hidden = false;
  by("export-note").textContent = note;
  by("exported").value = text;
  by("exported").hidden = by("export-copy").hidden = by("export-save").hidden = !text;
  by("export-save").dataset.file = file;
};

const save = () => {
  const address = URL.createObjectURL(new Blob([by("exported").value], { type: "text/plain" }));
  make("a", { href: address, download: by("export-save").dataset.file }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
};

// -- events ---------------------------------------------------------------------------------------

/** Takes the state from the address, and goes to the traces if it names any. */
const fromAddress = () => {
  const fragment = location.hash.slice(1);
  if (state && fragment && !isState(fragment)) return;  // a link to a section
  const [chosen, unknown] = stateOf(isState(fragment) ? fragment : "");
  state = chosen;
  by("message").textContent = unknown.length ? `Not on this page, and left out: ${unknown.join(", ")}` : "";
  showAll();
  if (isState(fragment)) by("traces").scrollIntoView();
};

/** Takes over the rows of a newer page. Filters and what is open stay, also if their traces are gone. */
const refreshRows = (entries) => {
  const before = rowOf(state.trace) ? article(rowOf(state.trace)).textContent : "";
  const focused = document.activeElement.closest?.("li[data-trace]")?.dataset.trace;
  by("entries").replaceWith(entries);
  readRows();
  if (!by("limits").contains(document.activeElement)) showFilters();
  showList();
  [...by("list").children].find((item) => focused && item.dataset.trace === focused)?.firstElementChild.focus();
  const row = rowOf(state.trace);
  if (before && row && article(row).textContent !== before) showPanes();
};

const listen = () => {
  const choose = (id, action) => by(id).addEventListener("change", () => { action(by(id).value); narrow(); });
  choose("set", (value) => { state.set = value; });
  choose("sort", (value) => { state.sort = value; });
  for (const [name] of data.facets) {
    choose(name, (value) => { if (value) state.facets[name] = value; else delete state.facets[name]; });
  }
  by("signal").addEventListener("change", () => {
    const name = by("signal").value;
    if (name) state.limits[name] ??= ["", ""];
    showFilters();
    narrow();
  });
  by("search").addEventListener("input", () => { state.text = by("search").value; narrow(); });
  const on = (id, action) => by(id).addEventListener("click", (event) => action(event.currentTarget));
  on("direction", () => { state.down = !state.down; showFilters(); narrow(); });
  on("clear", () => {
    state = { ...start(), trace: state.trace, beside: state.beside, diff: state.diff };
    by("message").textContent = "";
    showFilters();
    narrow();
  });
  on("previous", () => { state.page -= 1; showList(); remember(); });
  on("next", () => { state.page += 1; showList(); remember(); });
  on("export", showExport);
  on("export-copy", (button) => copy(by("exported").value, button));
  on("export-save", save);
  on("export-close", () => { by("export-pane").hidden = true; });
  by("list").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const items = [...by("list").querySelectorAll("li[data-trace]")];
    const next = items[items.indexOf(event.target.closest("li")) + (event.key === "ArrowDown" ? 1 : -1)];
    if (next) { event.preventDefault(); next.firstElementChild.focus(); open(rowOf(next.dataset.trace)); }
  });
  addEventListener("popstate", fromAddress);
};

readRows();
listen();
fromAddress();
