// How the daemon itself is doing.

import { get } from "../api.js";
import { smallChart } from "../charts/small.js";
import { h, put } from "../dom.js";
import { bytes, count, number, share, span } from "../format.js";
import { on } from "../live.js";
import { sentence, when } from "../parts.js";
import { setTitle } from "../router.js";

const REFRESH_SECONDS = 10; // as often as there is a new point

export async function showFleet({ main, signal }) {
  setTitle("Fleet");
  const [status, series, models] = await Promise.all([
    get("/status", {}, signal), get("/fleet", {}, signal), get("/models", {}, signal)]);

  const figures = {
    rate: panel("Events a second", (value) => count(value), "count"),
    lag: panel("Lag, records not read yet", (value) => count(value), "count"),
    latency: panel("Latency, 99th percentile", (value) => span(value), "seconds"),
    resident: panel("Memory of the process", (value) => bytes(value ?? 0), "bytes"),
  };
  const facts = h("dl", { class: "figures" });
  const retraining = h("section", { class: "section" });
  put(main, h("header", { class: "lead" }, h("h1", {}, "Fleet"), h("p", { class: "soft" }, "The last hour, a point every ten seconds.")),
    h("div", { class: "small-charts" }, Object.values(figures).map((one) => one.element)),
    h("section", { class: "section" }, h("h2", {}, "Now"), h("div", { class: "card pad after" }, facts)),
    retraining,
    h("section", { class: "section" }, h("h2", {}, "Models"), h("div", { class: "card scroll after", tabindex: "0", role: "region", "aria-label": "Models" }, modelTable(models.models))));

  function panel(title, format, unit) {
    const value = h("span", { class: "big" }, "–");
    const area = h("div", { class: "small-chart" });
    const element = h("figure", { class: "card pad" }, h("figcaption", {}, title), value, area);
    return { element, value, area, title, format, unit, chart: null };
  }

  function draw(found) {
    const columns = { rate: found.events_per_second, lag: found.lag, latency: found.latency_p99, resident: found.resident_bytes };
    for (const [key, values] of Object.entries(columns)) {
      const one = figures[key];
      one.chart ??= smallChart(one.area, { label: one.title, format: one.format, unit: one.unit, signal });
      one.chart.update(found.time, values);
    }
  }

  function drawNow(found) {
    const set = (key, text) => figures[key].value.textContent !== text && (figures[key].value.textContent = text);
    set("rate", count(found.events_per_second));
    set("lag", count(found.lag));
    set("latency", found.latency_seconds ? span(found.latency_seconds.p99) : "–");
    set("resident", bytes(found.resident_bytes));
    const used = found.state_limit_bytes ? found.state_bytes / found.state_limit_bytes : null;
    put(facts,
      figure("Streams in memory", count(found.streams)),
      figure("Median latency", found.latency_seconds ? span(found.latency_seconds.p50) : "–"),
      figure("Rejected records", share(found.rejected_share), found.rejected_share > 0.01),
      figure("Late events", share(found.late_share), found.late_share > 0.05),
      h("div", {}, h("dt", {}, "Memory of states"), h("dd", {}, `${bytes(found.state_bytes)} of ${bytes(found.state_limit_bytes)}`,
        h("meter", { min: "0", max: "1", high: "0.9", value: used ?? 0, "aria-label": "share of the limit" }))),
      figure("Model", found.model.version),
      figure("Cell", found.model.cell),
      h("div", {}, h("dt", {}, "Trained"), h("dd", {}, found.model.trained_at ? when(found.model.trained_at, { ago: true }) : "before it shipped")),
      figure("State", found.word));
  }

  function drawRetraining(found) {
    put(retraining, h("h2", {}, "Last retraining"));
    if (!found) {
      retraining.append(h("p", { class: "card empty after" }, "None since the start."));
      return;
    }
    const area = h("div", { class: "small-chart" });
    retraining.append(h("div", { class: "card pad after" },
      h("p", { class: "facts" }, h("b", { class: `word ${found.outcome === "promoted" ? "fine" : found.outcome === "failed" ? "critical" : ""}` }, found.outcome),
        when(found.at), h("span", {}, "took ", h("b", {}, span(found.seconds)))),
      h("p", {}, sentence(found.reason)),
      found.losses.length ? h("table", { class: "narrow" }, h("thead", {}, h("tr", {}, ["loss, nats", "before", "after"].map((word, i) => h("th", { class: i ? "number" : "", scope: "col" }, word)))),
        h("tbody", {}, found.losses.map((one) => h("tr", {}, h("th", { scope: "row" }, one.what), h("td", { class: "number" }, number(one.before)), h("td", { class: "number" }, number(one.after)))))) : null,
      found.curve.length > 1 ? h("figure", {}, h("figcaption", { class: "soft small" }, "training loss, from the first step to the last"), area) : null));
    if (found.curve.length > 1) {
      smallChart(area, { label: "Training loss", format: number, unit: "number", signal, isTime: false }).update(found.curve.map((_, i) => i), found.curve);
    }
  }

  let drawn = "";
  function all(found) {
    drawNow(found);
    const face = JSON.stringify(found.retraining);
    if (face !== drawn) drawRetraining(found.retraining);
    drawn = face;
  }

  queueMicrotask(() => draw(series));
  all(status);
  on("status", signal, all);
  const timer = setInterval(() => document.hidden || get("/fleet", {}, signal).then(draw, () => {}), REFRESH_SECONDS * 1000);
  signal.addEventListener("abort", () => clearInterval(timer));
}

const figure = (label, value, isHigh = false) => h("div", {}, h("dt", {}, label), h("dd", { class: isHigh ? "word warning" : "" }, value, isHigh ? " (high)" : ""));

function modelTable(models) {
  return h("table", {}, h("thead", {}, h("tr", {}, ["version", "cell", "trained", "losses", ""].map((word) => h("th", { scope: "col" }, word || h("span", { class: "unseen" }, "state"))))),
    h("tbody", {}, models.map((one) => h("tr", {},
      h("td", { class: "name" }, one.version), h("td", {}, one.cell ?? "–"),
      h("td", {}, one.trained_at ? when(one.trained_at) : "before it shipped"),
      h("td", {}, Object.entries(one.losses).map(([what, loss]) => `${what} ${number(loss)}`).join(", ") || "–"),
      h("td", {}, one.current ? h("span", { class: "word fine" }, "scores now") : "")))));
}
