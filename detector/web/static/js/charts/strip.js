// The hidden state as a heat strip: a column an event, a row a unit; blue below zero, orange above.

import { h, put } from "../dom.js";
import { moment } from "../format.js";
import { colour } from "./style.js";

const ROW = 4; // px

/** Draw {time, units, values [events][units]} in an area. */
export function heatStrip(area, { time, units, values }, signal) {
  const canvas = h("canvas", { class: "strip", width: Math.max(1, values.length), height: Math.max(1, units), role: "img" });
  canvas.style.height = `${Math.max(60, units * ROW)}px`;
  const readout = h("p", { class: "note" }, "Each row is a unit of the network's memory, each column an event; blue is below zero, orange above.");
  const at = (time) => h("span", {}, time === undefined ? "" : moment(time * 1000));
  put(area, canvas, h("p", { class: "strip-ends note", "aria-hidden": "true" }, at(time[0]), at(time.at(-1))), readout);
  const largest = values.reduce((most, row) => row.reduce((a, b) => Math.max(a, Math.abs(b)), most), 1e-9);
  canvas.setAttribute("aria-label", values.length
    ? `Hidden state: ${units} units over ${values.length} events from ${moment(time[0] * 1000)}; values up to ${largest.toFixed(2)}.`
    : "Hidden state: no events yet.");

  function draw() {
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    const [cold, none, warm] = ["cold", "none", "warm"].map((one) => rgb(colour(one)));
    values.forEach((row, x) => row.forEach((value, y) => {
      const part = Math.min(1, Math.abs(value) / largest);
      const end = value < 0 ? cold : warm;
      const at = (y * canvas.width + x) * 4;
      for (let c = 0; c < 3; c += 1) image.data[at + c] = none[c] + (end[c] - none[c]) * part;
      image.data[at + 3] = 255;
    }));
    context.putImageData(image, 0, 0);
  }

  canvas.addEventListener("pointermove", (event) => {
    const x = Math.floor((event.offsetX / canvas.clientWidth) * values.length);
    const y = Math.floor((event.offsetY / canvas.clientHeight) * units);
    if (values[x]?.[y] !== undefined) readout.textContent = `${moment(time[x] * 1000)}, unit ${y + 1}: ${values[x][y].toFixed(3)}`;
  }, { signal });
  addEventListener("longwatch:theme", draw, { signal });
  draw();
}

function rgb(text) {
  const hex = text.length === 4 ? text.replace(/[0-9a-f]/gi, "$&$&") : text;
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}
