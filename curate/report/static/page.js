"use strict";
// Shows what is there: no text becomes markup here, everything comes finished from a <template>.
(() => {
  const root = document.documentElement;
  const by = (id) => document.getElementById(id);
  const saved = (value) => {
    try { return value ? localStorage.setItem("theme", value) : localStorage.getItem("theme"); } catch { return null; }
  };
  const theme = (name) => { root.classList.remove("light", "dark"); if (name) root.classList.add(name); };
  theme(saved());
  by("theme").addEventListener("click", () => {
    const dark = root.classList.contains("dark")
      || (!root.classList.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
    theme(dark ? "light" : "dark");
    saved(dark ? "light" : "dark");
  });

  const list = by("list");
  if (!list) return;
  const items = [...list.children];
  const paneA = by("pane-a"), paneB = by("pane-b"), browser = list.parentElement;
  const texts = new Map();
  const textOf = (id) => {
    if (!texts.has(id)) texts.set(id, by("t-" + id).content.textContent.toLowerCase());
    return texts.get(id);
  };

  const narrow = () => {
    const set = by("set").value, verdict = by("verdict").value, wanted = by("search").value.trim().toLowerCase();
    let shown = 0;
    for (const item of items) {
      const fits = item.dataset.sets.split(" ").includes(set) && (!verdict || item.dataset.verdict === verdict)
        && (!wanted || textOf(item.dataset.trace).includes(wanted));
      item.hidden = !fits;
      shown += fits;
    }
    by("shown").textContent = shown + " shown";
  };

  const fill = (pane, id) => pane.replaceChildren(by("t-" + id).content.cloneNode(true));

  const second = (id) => {
    paneB.hidden = !id;
    browser.classList.toggle("two", Boolean(id));
    if (id) fill(paneB, id);
  };

  const open = (item) => {
    for (const other of items) other.firstElementChild.removeAttribute("aria-current");
    item.firstElementChild.setAttribute("aria-current", "true");
    fill(paneA, item.dataset.trace);
    second("");
    const others = items.filter((o) => o !== item && o.dataset.problem === item.dataset.problem);
    if (!others.length) return;
    const label = document.createElement("label"), choice = document.createElement("select");
    label.append("compare with another trace of this problem: ", choice);
    choice.className = "beside";
    choice.append(new Option("none", ""), ...others.map((o) => new Option(o.dataset.label, o.dataset.trace)));
    choice.addEventListener("change", () => second(choice.value));
    paneA.prepend(label);
  };

  for (const item of items) item.firstElementChild.addEventListener("click", () => open(item));
  list.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const shown = items.filter((i) => !i.hidden), at = shown.indexOf(event.target.closest("li"));
    const next = shown[at + (event.key === "ArrowDown" ? 1 : -1)];
    if (next) { event.preventDefault(); next.firstElementChild.focus(); open(next); }
  });
  for (const id of ["set", "verdict"]) by(id).addEventListener("change", narrow);
  by("search").addEventListener("input", narrow);
  narrow();
})();
