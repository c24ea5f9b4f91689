// How all charts look: colours of the theme, axes, sizes.

import uPlot from "../../vendor/uPlot.esm.js";
import { hourOf, number, secondOf, shortDay, zone } from "../format.js";

export const LEFT = 58; // px of the axis on the left, the same for all that stand above each other
export { uPlot };

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const FONT = '12px "Inter", "Segoe UI", -apple-system, Roboto, "Helvetica Neue", Arial, sans-serif';

export function timeAxis(isShown = true) {
  return {
    show: isShown, stroke: colour("soft"), font: FONT, size: 30, gap: 5, space: 78,
    grid: { stroke: colour("grid"), width: 1 }, ticks: { stroke: colour("line"), width: 1, size: 4 },
    values: (_, splits, __, ___, step) => {
      let day = "";
      return splits.map((at) => {
        const ms = at * 1000;
        const today = shortDay(ms);
        const isNew = today !== day && day !== "";
        day = today;
        return step >= 86400 || isNew ? today : step < 60 ? secondOf(ms) : hourOf(ms);
      });
    },
  };
}

export function valueAxis(extra = {}) {
  return {
    stroke: colour("soft"), font: FONT, size: LEFT, gap: 5, space: 32,
    grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false },
    values: (_, splits) => splits.map((value) => (value === null ? "" : short(value))), ...extra,
  };
}

/** A number for an axis, with its thousands as letters. */
export function short(value) {
  const size = Math.abs(value);
  for (const [limit, letter] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= limit) return `${Number((value / (letter === "k" ? 1e3 : limit)).toPrecision(3))}${letter}`;
  }
  return number(Number(value.toPrecision(6)));
}

export const tzDate = (at) => uPlot.tzDate(new Date(at * 1e3), zone());

/** Keep a chart as wide as its place, and drawn in the theme's colours: `build()` makes it anew. */
export function keepFitting(area, signal, { resize, build }) {
  const observer = new ResizeObserver(() => requestAnimationFrame(() => !signal.aborted && resize(area.clientWidth)));
  observer.observe(area);
  addEventListener("longwatch:theme", build, { signal });
  signal.addEventListener("abort", () => observer.disconnect());
}
