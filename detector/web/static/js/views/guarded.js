// Buttons that change something: whoever may not yet is asked for a token first, then for the rest.

import { askForToken } from "../dialogs.js";
import { h } from "../dom.js";
import { session } from "../session.js";

/** A button: `act()` is called once one may write. `key`: which key presses it. */
export function guarded(word, key, act) {
  const press = async () => (session.writable || (await askForToken())) && act();
  return h("button", { type: "button", class: "button", "data-key": key, on: { click: press } }, word);
}
