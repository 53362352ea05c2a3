// The page of a running warehouse: loads itself again into a document that runs nothing, and takes
// over the sections that have changed.
const PERIOD = 2000;
const sections = [...document.querySelectorAll("section")];
let paused = false;

/** What tells a detail from the others of its section: its summary, and the figure that it is in. */
const nameOf = (details) => `${details.closest("figure")?.firstElementChild.textContent} ${details.firstElementChild.textContent}`;

/** Replaces the content of a section; opened details stay open, and a selection is left alone. */
const takeOver = (fresh) => {
  const old = by(fresh.id);
  if (!old || fresh.dataset.version === old.dataset.version) return;
  const selection = getSelection();
  if (!selection.isCollapsed && old.contains(selection.anchorNode)) return;
  old.dataset.version = fresh.dataset.version;
  if (fresh.id === "traces") {
    refreshRows(document.adoptNode(fresh.querySelector("#entries")));
    return;
  }
  const opened = new Map([...old.querySelectorAll("details")].map((details) => [nameOf(details), details.open]));
  old.replaceChildren(...[...fresh.childNodes].map((node) => document.adoptNode(node)));
  for (const details of old.querySelectorAll("details")) details.open = opened.get(nameOf(details)) ?? details.open;
};

const arrived = (request) => {
  const fresh = request.response;
  if (request.status === 200 && fresh) {
    fresh.querySelectorAll("section").forEach(takeOver);
    by("subtitle").textContent = fresh.getElementById("subtitle").textContent;
    by("live").textContent = "live";
  } else by("live").textContent = `not updated: ${fresh?.getElementById("problem")?.textContent ?? request.status}`;
};

const load = () => {
  if (paused || document.hidden) { setTimeout(load, PERIOD); return; }
  const request = new XMLHttpRequest();
  request.open("GET", "/?have=" + sections.map((section) => section.dataset.version).join(","));
  request.responseType = "document";
  request.addEventListener("load", () => arrived(request));
  request.addEventListener("error", () => { by("live").textContent = "not updated: curate watch has ended or cannot be reached"; });
  request.addEventListener("loadend", () => setTimeout(load, PERIOD));
  request.send();
};

by("pause").addEventListener("click", () => {
  paused = !paused;
  by("pause").textContent = paused ? "resume" : "pause";
  by("live").textContent = paused ? "paused" : "live";
});
setTimeout(load, PERIOD);
