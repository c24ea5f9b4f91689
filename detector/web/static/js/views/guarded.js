// Buttons that change something: whoever may not yet is asked for a token first, then for the rest.

import { askForToken } from "../dialogs.js";
import { h } from "../dom.js";
import { tell } from "../parts.js";
import { session } from "../session.js";

/** A button: `act()`, which may raise what is then told, is called once one may write. `key`: which key presses it. */
export function guarded(word, key, act) {
  const press = async () => {
    try {
      if (session.writable || (await askForToken())) await act();
    } catch (error) {
      if (error.name !== "AbortError") tell(error.message); // else the view has been left
    }
  };
  return h("button", { type: "button", class: "button", "data-key": key, on: { click: press } }, word);
}
