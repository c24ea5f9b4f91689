// What is asked for before something is changed, and the help. Dialogs are the browser's own, with its focus and Escape.

import { hasToken, send, useToken } from "./api.js";
import { h, put, visible } from "./dom.js";
import { moment, now, remember, remembered } from "./format.js";
import { areOn } from "./keys.js";
import { tell } from "./parts.js";
import { session } from "./session.js";

function open(content) {
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, content);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

const title = (text) => h("h2", { id: "dialog-title" }, text);

function buttons(word, close) {
  return h("div", { class: "actions" },
    h("button", { type: "button", class: "button", on: { click: close } }, "Cancel"),
    h("button", { type: "submit", class: "button main" }, word));
}

/** A form in a dialog: `act(form's values)` may raise what is then shown. Returns whether it was done, once it closes. */
function form(head, fields, word, act) {
  const refused = h("p", { class: "refused", role: "alert" });
  let done = false;
  const element = h("form", { novalidate: true }, title(head), fields, refused, buttons(word, () => dialog.close()));
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = element.querySelector("[type=submit]");
    button.disabled = true;
    refused.textContent = "";
    try {
      await act(Object.fromEntries(new FormData(element)));
      done = true;
      dialog.close();
    } catch (error) {
      refused.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  });
  const dialog = open(element);
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(done)));
}

const field = (label, input, hint) => h("label", { class: "field" }, h("span", {}, label), input, hint ? h("small", {}, hint) : null);

function author() {
  return field("Your name", h("input", { type: "text", name: "author", required: true, maxlength: "100", autocomplete: "name", value: remembered("longwatch.author") ?? "" }));
}

const reason = (label = "Reason") => field(label, h("input", { type: "text", name: "reason", maxlength: "500", "data-first": true }));

function signed(values) {
  if (!values.author?.trim()) throw new Error("Your name is missing: others will want to know who did this.");
  remember("longwatch.author", values.author.trim());
  return { author: values.author.trim(), reason: (values.reason ?? "").trim() };
}

/** Ask for a token, or forget the one that is kept; return whether one may write now. */
export async function askForToken() {
  if (session.writable && hasToken()) {
    await form("You may change things", h("p", { class: "soft" }, "The token is kept until this tab is closed."), "Forget the token", async () => {
      await useToken("");
      await session.refresh();
    });
    return session.writable;
  }
  if (session.writable) {
    open(h("div", { class: "inner" }, title("You may change things"), h("p", { class: "soft" }, "Your browser has given the password."), closer()));
    return true;
  }
  const done = await form("Give a token",
    [h("p", { class: "soft" }, "Reading needs none. Muting, acknowledging and marking alerts need the token of http.token, or the one in api.token in the daemon's state directory. It is kept until this tab is closed."),
      field("Token", h("input", { type: "password", name: "token", autocomplete: "off", required: true }))],
    "Use it", async ({ token }) => {
      if (!token.trim()) throw new Error("The token is missing.");
      if (!(await useToken(token.trim()))) throw new Error("The daemon does not know this token.");
      await session.refresh();
    });
  if (done) tell("You may change things now.");
  return session.writable;
}

/** A pattern that only this name matches. */
export const literal = (name) => name.replace(/[[*?]/g, "[$&]");

const FAR = 3600e3; // ms by which events are not of now: a replay's, or a clock's that is wrong

/** Mute a stream or a pattern. `last`: when its last event was, by its own time. */
export function mute(pattern, last = null) {
  const at = last !== null && Math.abs(Date.parse(last) - now()) > FAR ? Date.parse(last) : now();
  const until = (seconds) => new Date(at + seconds * 1000);
  const end = h("p", { class: "note", role: "status" });
  const spans = { "1 hour": 3600, "4 hours": 14400, "1 day": 86400, "1 week": 604800, "for good": 0 };
  const choices = h("fieldset", {}, h("legend", {}, "For how long"),
    h("div", { class: "choices" }, Object.entries(spans).map(([word, seconds], i) =>
      h("label", { class: "choice" }, h("input", { type: "radio", name: "span", value: seconds, checked: i === 1 }), word))), end);
  const told = () => {
    const seconds = Number(choices.querySelector(":checked").value);
    end.textContent = seconds ? `Until ${moment(until(seconds).getTime())}, by the time of the streams' own events.` : "Until somebody unmutes it.";
  };
  choices.addEventListener("change", told);
  told();
  return form("Mute", [
    field("Stream or pattern", h("input", { type: "text", name: "pattern", value: pattern, required: true, maxlength: "4096" }), "* stands for any characters, ? for one. Events are scored and learnt as before; nobody is told."),
    choices, reason(), author()], "Mute", async (values) => {
    if (!values.pattern) throw new Error("Which streams? * stands for any characters.");
    const seconds = Number(values.span);
    await send("POST", "/mutes", { pattern: values.pattern, until: seconds ? until(seconds).toISOString() : null, ...signed(values) });
    tell(seconds ? `Muted until ${moment(until(seconds).getTime())}.` : "Muted for good.");
  });
}

export function acknowledge(incident) {
  return form("Acknowledge", [h("p", { class: "soft" }, "Others see that you have taken this on."), reason("A word to others"), author()], "Acknowledge",
    async (values) => {
      await send("POST", `/incidents/${encodeURIComponent(incident.id)}/acknowledge`, signed(values));
      tell("Acknowledged.");
    });
}

export function verdict(alert, word) {
  const meaning = {
    false: "Nothing was wrong: its span counts as normal, is learnt, and the stream's threshold learns from it.",
    right: "Something was wrong: its span stays out of what is learnt.",
  };
  return form(word === "false" ? "A false alarm" : "Rightly alerted", [h("p", { class: "soft" }, meaning[word]), reason(), author()], "Mark it", async (values) => {
    await send("POST", `/alerts/${encodeURIComponent(alert.id)}/verdict`, { verdict: word, ...signed(values) });
    tell(word === "false" ? "Marked as false." : "Marked as right.");
  });
}

export function reset(stream) {
  return form("Reset the stream", [h("p", {}, h("bdi", { class: "name" }, visible(stream))), h("p", { class: "soft" }, "All that is remembered of it is forgotten, and it warms up anew."), reason(), author()], "Reset", async (values) => {
    await send("POST", `/stream/reset?${new URLSearchParams({ name: stream })}`, signed(values));
    tell("Reset.");
  });
}

const closer = () => h("div", { class: "actions" }, h("button", { type: "button", class: "button", on: { click: (event) => event.target.closest("dialog").close() } }, "Close"));

const KEYS = [
  [["j"], ["k"], "next and previous of a list; arrows too, in the list"],
  [["Enter"], "open"],
  [["Esc"], "back"],
  [["/"], "search the streams"],
  [["n"], ["p"], "next and previous page"],
  [["g", "i"], ["g", "s"], ["g", "m"], ["g", "f"], "incidents, streams, mutes, fleet"],
  [["a"], ["m"], "acknowledge, mute"],
  [["t"], "theme"],
  [["?"], "this help"],
];

export function showHelp() {
  const rows = KEYS.map((row) => [
    h("dt", {}, row.slice(0, -1).map((one, i) => [i ? " or " : "", one.map((key) => h("kbd", {}, key))])),
    h("dd", {}, row.at(-1))]);
  const box = h("input", { type: "checkbox", checked: areOn(), on: { change: (event) => remember("longwatch.keys", event.target.checked ? null : "off") } });
  const content = h("div", { class: "inner" }, title("Keys"), h("dl", { class: "keys" }, rows),
    h("label", { class: "choice" }, box, "single keys do this"),
    h("p", { class: "note" }, "A score is log10 of a return period in events: 5 is as rare as once in 100,000 events of its stream. The band is where a value would have been ordinary."), closer());
  put(content, [...content.children]);
  open(content);
}
