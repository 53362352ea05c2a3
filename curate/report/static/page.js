// Themes, and what the other parts share. No text becomes markup: the policy of the page refuses it.
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

/** An element with properties and children; strings become text nodes. */
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

/** A button that does something. */
const press = (label, action, className = "") => {
  const button = make("button", { type: "button", className }, label);
  button.addEventListener("click", () => action(button));
  return button;
};

/** Copies a text, and says so on the button for a second. */
const copy = async (text, button) => {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    prompt("Copy this:", text);  // clipboards need a secure origin
  }
  setTimeout(() => { button.textContent = label; }, 1000);
};
