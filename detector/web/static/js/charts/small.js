// One figure over time, small.

import { bytes, moment, span } from "../format.js";
import { colour, keepFitting, short, timeAxis, tzDate, uPlot, valueAxis } from "./style.js";

const HEIGHT = 128;

/** Distances between an axis's ticks: 1, 2 and 5 of each power of ten. */
const decimal = (from, to) => Array.from({ length: to - from }, (_, i) => [1, 2, 5].map((n) => Number(`${n}e${from + i}`))).flat();

/** Axes by what they measure: how far ticks may be apart, so that each reads as one short figure, and that figure. */
const AXES = {
  count: { incrs: decimal(0, 13), text: short },
  seconds: {
    incrs: [...decimal(-4, 0), 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200,
      ...[1, 2, 4, 6, 12].map((h) => h * 3600), ...decimal(0, 6).map((d) => d * 86400)],
    text: span,
  },
  bytes: { incrs: decimal(0, 15), text: bytes },
  number: { incrs: decimal(-15, 15), text: short },
};

/** Make a chart in an area: update(time, values) draws; its label says the range to whoever cannot see it. */
export function smallChart(area, { label, format, signal, unit, isTime = true }) {
  let chart = null;
  let data = [[], []];
  const { incrs, text } = AXES[unit];

  function build() {
    chart?.destroy();
    const plain = { ...timeAxis(), values: (_, splits) => splits.map(short) };
    chart = new uPlot({
      width: Math.max(area.clientWidth, 120), height: HEIGHT, tzDate, legend: { show: false },
      padding: [8, 26, 0, 0], cursor: { y: false, drag: { setScale: false } },
      scales: { x: { time: isTime }, y: { range: (_, low, high) => range(low, high, isTime, incrs[0]) } },
      axes: [isTime ? timeAxis() : plain, valueAxis({ incrs, values: (_, splits) => splits.map(text) })],
      series: [{}, { stroke: colour("expected"), width: 1.6, fill: colour("band"), points: { show: false } }],
      hooks: { setCursor: [(u) => (area.dataset.at = reading(u.cursor.idx))] },
    }, data, area);
  }

  function reading(i) {
    if (i === null || i === undefined || data[1][i] === null || data[1][i] === undefined) return "";
    return `${isTime ? moment(data[0][i] * 1000) : `step ${i + 1}`}: ${format(data[1][i])}`;
  }

  area.setAttribute("role", "img");
  keepFitting(area, signal, { resize: (width) => chart?.setSize({ width: Math.max(width, 120), height: HEIGHT }), build });
  return {
    update(time, values) {
      data = [time, values];
      if (chart) chart.setData(data);
      else build();
      const known = values.filter((value) => value !== null);
      area.setAttribute("aria-label", known.length
        ? `${label}: from ${format(Math.min(...known))} to ${format(Math.max(...known))}, last ${format(known.at(-1))}`
        : `${label}: no points yet, the first comes within ten seconds`);
      area.classList.toggle("is-empty", known.length < 2);
    },
  };
}

function range(low, high, fromZero, least) {
  if (low === null || high === null) return [0, 1];
  if (fromZero && high <= least) return [0, least];
  const room = (high - low || Math.abs(high) || 1) * 0.12;
  return fromZero ? [0, high + room || 1] : [low - room, high + room];
}
