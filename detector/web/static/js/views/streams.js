// All streams, what fires and is least usual first; a search among them.

import { get } from "../api.js";
import { h, keyed, put, visible } from "../dom.js";
import { count, score, span } from "../format.js";
import { when } from "../parts.js";
import { link, readdress, setTitle, streamLink } from "../router.js";

const LIMIT = 50;
const TYPING_MS = 60; // after the last key
const REFRESH_SECONDS = 2;

export async function showStreams({ main, query, signal }) {
  setTitle("Streams");
  const asked = { q: query.get("q") ?? "", sort: query.get("sort") === "name" ? "name" : "anomalous", offset: Math.max(0, Number(query.get("offset")) || 0) };
  const field = h("input", { type: "search", id: "search", value: asked.q, placeholder: "a part of the name", autocomplete: "off", spellcheck: "false", maxlength: "1000", "data-focus": true });
  const sort = h("select", { "aria-label": "Order" }, h("option", { value: "anomalous" }, "least usual first"), h("option", { value: "name" }, "by name"));
  sort.value = asked.sort;
  const total = h("p", { class: "soft small", role: "status" });
  const note = h("p", { class: "note" });
  const list = h("tbody", {});
  const table = h("table", { class: "streams" },
    h("thead", {}, h("tr", {}, [["stream", ""], ["score of threshold", ""], ["last event", ""], ["usual gap", "number wide"], ["events", "number wide"], ["features", "number wide"]].map(([word, kind]) => h("th", { scope: "col", class: kind }, word)))), list);
  const before = pager("Previous", "before", -LIMIT);
  const next = pager("Next", "next", LIMIT);
  const refused = h("p", { class: "refused", role: "alert" });
  put(main, h("header", { class: "lead" }, h("h1", {}, "Streams")),
    h("div", { class: "filters" }, h("label", { class: "search" }, h("span", { class: "unseen" }, "Search the streams"), field), sort, total),
    refused, h("div", { class: "card" }, table), h("div", { class: "actions after" }, before, next), note);

  let request = null;
  async function load() {
    request?.abort();
    request = new AbortController();
    const own = request;
    try {
      const page = await get("/streams", { ...asked, limit: LIMIT }, AbortSignal.any([own.signal, signal]));
      refused.textContent = "";
      draw(page);
    } catch (error) {
      if (error.name !== "AbortError") refused.textContent = error.message;
    }
  }

  function draw(page) {
    keyed(list, page.streams, (one) => one.name, row);
    const last = Math.min(asked.offset + page.streams.length, page.total);
    total.textContent = page.total ? `${count(asked.offset + 1)} to ${count(last)} of ${count(page.total)}` : asked.q ? "No stream has this in its name." : "No stream has sent anything yet.";
    note.textContent = page.note;
    before.disabled = asked.offset === 0;
    next.disabled = asked.offset + LIMIT >= page.total;
    table.parentElement.hidden = !page.streams.length;
    before.parentElement.hidden = page.total <= LIMIT && asked.offset === 0;
    main.dataset.answered = asked.q; // for whoever waits for it
  }

  function go(changes) {
    Object.assign(asked, changes);
    readdress(link("/streams", { q: asked.q, sort: asked.sort === "name" ? "name" : "", offset: asked.offset || "" }));
    return load();
  }

  function pager(word, key, step) {
    return h("button", { type: "button", class: "button", "data-key": key, on: { click: () => go({ offset: Math.max(0, asked.offset + step) }).then(() => scrollTo(0, 0)) } }, word);
  }

  let typing = null;
  field.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go({ q: field.value, offset: 0 }), TYPING_MS);
  });
  sort.addEventListener("change", () => go({ sort: sort.value, offset: 0 }));
  const timer = setInterval(() => document.hidden || load(), REFRESH_SECONDS * 1000);
  signal.addEventListener("abort", () => {
    clearInterval(timer);
    clearTimeout(typing);
  });
  await load();
}

function row(stream) {
  const states = [
    stream.firing ? h("a", { class: "tag alerting", href: link(`/alerts/${encodeURIComponent(stream.firing)}`) }, "alert") : null,
    stream.muted ? h("span", { class: "tag" }, "muted") : null,
    stream.warming ? h("span", { class: "tag" }, "warming up") : null,
    stream.rule ? h("span", { class: "tag" }, `rule ${stream.rule}`) : null,
    stream.events === null ? h("span", { class: "tag" }, "on disk") : null,
  ];
  return h("tr", { "data-item": true },
    h("th", { scope: "row" }, h("a", { class: "name", href: streamLink(stream.name), title: stream.name, "data-row": stream.name }, h("bdi", {}, visible(stream.name))), states),
    h("td", {}, meter(stream)),
    h("td", { class: "nowrap" }, when(stream.last_event_at, { ago: true })),
    h("td", { class: "number wide" }, span(stream.interval_seconds)),
    h("td", { class: "number wide" }, count(stream.events)),
    h("td", { class: "number wide" }, count(stream.features)));
}

/** A score as a bar towards its threshold. */
function meter({ score: value, threshold }) {
  if (value === null || !threshold) return h("span", { class: "soft" }, "–");
  const isOver = value > threshold;
  return h("span", { class: `gauge ${isOver ? "over" : ""}` },
    h("span", { class: "gauge-bar", "aria-hidden": "true", css: { "--share": String(Math.min(1, value / threshold)) } }),
    h("span", { class: "gauge-text" }, `${score(value)} of ${score(threshold)}`));
}
