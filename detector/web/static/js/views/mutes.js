// Which streams do not alert, until when, and who said so.

import { get, send } from "../api.js";
import { literal, mute } from "../dialogs.js";
import { h, keyed, put, visible } from "../dom.js";
import { moment, plural } from "../format.js";
import { sentence, tell, when } from "../parts.js";
import { setTitle, streamLink } from "../router.js";
import { guarded } from "./guarded.js";

const REFRESH_SECONDS = 5;

export async function showMutes({ main, signal }) {
  setTitle("Mutes");
  const found = await get("/mutes", {}, signal);
  const list = h("ul", { class: "card past", "aria-label": "Mutes in force" });
  const none = h("p", { class: "card empty" }, "Nothing is muted: every stream may alert.");
  const total = h("p", { class: "soft" });
  put(main, h("header", { class: "lead" }, h("h1", {}, "Mutes"), total,
    h("div", { class: "actions after" }, guarded("Mute streams", "mute", async () => (await mute("")) && reload()))),
    list, none,
    h("p", { class: "note after" }, "Muted streams are scored and learnt from as before. A time is one of the streams' own events. What a rule of the settings mutes is not listed here."));

  function draw({ mutes }) {
    keyed(list, [...mutes].reverse(), (one) => one.id, (one) => muted(one, reload));
    list.hidden = !mutes.length;
    none.hidden = mutes.length > 0;
    total.textContent = mutes.length ? `${plural(mutes.length, "name or pattern", "names or patterns")} of streams that do not alert.` : "";
  }

  async function reload() {
    draw(await get("/mutes", {}, signal));
  }

  const timer = setInterval(() => document.hidden || reload().catch(() => {}), REFRESH_SECONDS * 1000);
  signal.addEventListener("abort", () => clearInterval(timer));
  draw(found);
}

/** One mute, with its end; `changed()` is called after that. `own`: the pattern that need not be said. */
function muted(one, changed, own = null) {
  const isName = !/[*?[]/.test(one.pattern);
  const pattern = h("bdi", { class: "name" }, visible(one.pattern));
  return h("li", { class: "mute-row", "data-item": true },
    h("span", {},
      one.pattern === own ? null : h("span", { class: "mute-what" }, isName ? h("a", { href: streamLink(one.pattern), "data-row": one.pattern }, pattern) : pattern),
      h("span", { class: "facts" }, h("b", {}, one.until ? `muted until ${moment(one.until)}` : "muted for good"),
        h("span", {}, "by ", h("b", {}, sentence(one.author)), one.reason ? [": ", sentence(one.reason)] : null),
        h("span", {}, when(one.created_at, { ago: true })))),
    unmute(one, isName ? null : one.pattern, changed));
}

function unmute(one, row, changed) {
  const button = guarded("Unmute", "unmute", async () => {
    await send("DELETE", `/mutes/${one.id}`).finally(changed);
    tell("No longer muted.");
  });
  button.setAttribute("aria-label", `Unmute ${visible(one.pattern)}`);
  if (row !== null) button.dataset.row = row;
  return button;
}

/** The mutes of a stream, where there are any. */
export const mutesOf = (stream, changed) =>
  (stream?.mutes.length ? h("ul", { class: "card past after", "aria-label": "Mutes of this stream" }, stream.mutes.map((one) => muted(one, changed, literal(stream.name)))) : null);
