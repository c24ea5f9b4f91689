// The keyboard. Single keys do nothing while one writes, and can be switched off (in the help).

import { remembered } from "./format.js";
import { place } from "./router.js";

const VIEWS = { i: "#/", s: "#/streams", m: "#/mutes", f: "#/fleet" };
let waiting = 0; // until when a second key belongs to "g"

export const areOn = () => remembered("longwatch.keys") !== "off";

function writes(element) {
  return element.isContentEditable || (element.matches("input, select, textarea") && !element.matches("[type=range], [type=checkbox]"));
}

/** Move among the rows of the view: to the next by 1, the one before by -1. */
function move(step) {
  const rows = [...document.querySelectorAll("main [data-row]")].filter((row) => row.offsetParent !== null);
  if (!rows.length) return;
  const at = rows.findIndex((row) => row === document.activeElement || row.closest("[data-item]")?.contains(document.activeElement));
  const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step));
  rows[next].focus();
  rows[next].scrollIntoView({ block: "nearest" });
}

function search() {
  const field = document.querySelector("main input[type=search]");
  if (field) field.focus();
  else location.hash = "#/streams";
}

export function keys({ theme, help }) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const target = event.target instanceof Element ? event.target : document.body;
    if (event.key === "Escape") {
      if (writes(target)) target.blur();
      else document.querySelector("main .back")?.click();
      return;
    }
    if (target.matches("input[type=search]") && event.key === "ArrowDown") {
      event.preventDefault();
      document.querySelector("main [data-row]")?.focus();
      return;
    }
    if (writes(target)) return;
    if (target.matches("[data-row]") && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      move(event.key === "ArrowDown" ? 1 : -1);
      return;
    }
    if (!areOn()) return;
    if (waiting > Date.now() && VIEWS[event.key]) {
      waiting = 0;
      location.hash = VIEWS[event.key];
      return;
    }
    const acts = {
      j: () => move(1),
      k: () => move(-1),
      "/": search,
      "?": help,
      t: theme,
      g: () => (waiting = Date.now() + 1500),
      n: () => document.querySelector("main [data-key=next]")?.click(),
      p: () => document.querySelector("main [data-key=before]")?.click(),
      a: () => act("acknowledge"),
      m: () => act("mute"),
    };
    if (acts[event.key]) {
      event.preventDefault();
      acts[event.key]();
    }
  });
}

/** Press a view's button, that of the row with the focus first. */
function act(what) {
  const own = document.activeElement?.closest("[data-item]");
  const button = own?.querySelector(`[data-key=${what}]`) ?? (place().path === "/" ? null : document.querySelector(`main [data-key=${what}]`));
  button?.click();
}
