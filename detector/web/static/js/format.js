// Numbers and times as people read them. Times are shown in the browser's zone or in UTC, as was chosen.

const LANGUAGE = "en-GB";
const plain = new Intl.NumberFormat(LANGUAGE, { maximumSignificantDigits: 4 });
const whole = new Intl.NumberFormat(LANGUAGE, { maximumFractionDigits: 0 });
const UNITS = ["B", "kB", "MB", "GB", "TB"];

export const DASH = "–";

let skew = 0; // ms that the daemon's clock is ahead of ours

/** Learn the daemon's time, so that a browser whose clock is wrong shows right ages. */
export function learnNow(text) {
  skew = Date.parse(text) - Date.now();
}

export const now = () => Date.now() + skew;

export function zone() {
  return remembered("longwatch.zone") === "UTC" ? "UTC" : Intl.DateTimeFormat().resolvedOptions().timeZone;
}

/** Read what this browser keeps; storage may be forbidden. */
export function remembered(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function remember(key, value) {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, value);
  } catch {
    // it holds until the page is left
  }
}

/** A number of the data, or a symbol. */
export function number(value) {
  if (value === null || value === undefined) return DASH;
  if (typeof value === "string") return value;
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e15 || size < 1e-4)) return value.toExponential(2).replace("e+", "e");
  return size >= 1e4 ? whole.format(value) : plain.format(value);
}

export const count = (value) => (value === null || value === undefined ? DASH : whole.format(value));
export const score = (value) => (value === null || value === undefined ? DASH : value.toFixed(1));
export const plural = (n, word, many = `${word}s`) => `${whole.format(n)} ${n === 1 ? word : many}`;

export function share(value) {
  if (value === null || value === undefined) return DASH;
  const percent = value * 100;
  return percent === 0 ? "0 %" : percent < 0.1 ? "< 0.1 %" : `${percent < 10 ? percent.toFixed(1) : percent.toFixed(0)} %`;
}

export function bytes(value) {
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 100 ? value.toFixed(1) : value.toFixed(0)} ${UNITS[unit]}`;
}

/** A time span in its two largest units. */
export function span(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return DASH;
  if (seconds < 1) return seconds <= 0 ? "0 s" : `${seconds < 0.1 ? (seconds * 1e3).toFixed(1) : (seconds * 1e3).toFixed(0)} ms`;
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return s < 600 && s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.round(s / 60)} min`;
  if (s < 86400) return two(Math.floor(s / 3600), "h", Math.round((s % 3600) / 60), "min");
  return two(Math.floor(s / 86400), "d", Math.round((s % 86400) / 3600), "h");
}

const two = (a, first, b, second) => (b ? `${a} ${first} ${b} ${second}` : `${a} ${first}`);
const formats = new Map();

function parts(ms, options) {
  const key = zone() + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat(LANGUAGE, { timeZone: zone(), ...options }));
  return formats.get(key).format(ms);
}

export const dayOf = (ms) => parts(ms, { year: "numeric", month: "short", day: "numeric" });
export const shortDay = (ms) => parts(ms, { month: "short", day: "numeric" });
export const hourOf = (ms) => parts(ms, { hour: "2-digit", minute: "2-digit" });
export const secondOf = (ms) => parts(ms, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** A moment: only its hour where it is today's. */
export function moment(text) {
  if (!text) return DASH;
  const at = typeof text === "number" ? text : Date.parse(text);
  if (dayOf(at) === dayOf(now())) return hourOf(at);
  const year = Math.abs(now() - at) < 300 * 864e5 ? shortDay(at) : dayOf(at);
  return `${year}, ${hourOf(at)}`;
}

/** How long ago. */
export const since = (text) => (now() - Date.parse(text)) / 1000;
