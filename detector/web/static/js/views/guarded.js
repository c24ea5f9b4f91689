// Buttons that change something: where that is not allowed they say why, to a pointer and to a screen reader.

import { h } from "../dom.js";
import { session, WHY_NOT } from "../session.js";

let ids = 0;

/** A button: `act()` is called only where one may write. `key`: which key presses it. */
export function guarded(word, key, act, signal) {
  const why = h("span", { class: "unseen", id: `why-${(ids += 1)}` });
  const button = h("button", { type: "button", class: "button", "data-key": key, "aria-describedby": why.id, on: { click: () => session.writable && act() } }, word);
  const draw = () => {
    if (session.writable) button.removeAttribute("aria-disabled");
    else button.setAttribute("aria-disabled", "true");
    why.textContent = session.writable ? "" : WHY_NOT;
    button.title = why.textContent;
  };
  session.addEventListener("change", draw, { signal });
  draw();
  return [button, why];
}
