// Windows are columns: what is new is put behind what is there.

const FLAT = ["time", "score", "threshold", "channel", "alert"];
const OF_FEATURE = ["observed", "expected", "lower", "upper", "contribution"];

/** Return from when to when an alert fired, Unix s; without an end while it does. */
export const spanOf = ({ started_at: from, ended_at: to }) => [Date.parse(from) / 1000, to ? Date.parse(to) / 1000 : Infinity];

/** Return a window with the points of another behind its own, of both at most the last `most` events. */
export function append(window, points, most) {
  const fresh = points ? points.time.findIndex((at) => !(at <= (window.time.at(-1) ?? -Infinity))) : -1;
  const from = fresh < 0 ? Infinity : fresh; // what came twice, by an answer and by an event, is there once
  const join = (own, other, n, m) => (own ?? Array(n).fill(null)).concat((other ?? Array(m).fill(null)).slice(from)).slice(-most);
  const n = window.time.length;
  const m = points?.time.length ?? 0;
  const features = [...new Set([...window.features, ...(points?.features ?? [])])];
  const next = { ...window, features, by_feature: {} };
  for (const key of FLAT) next[key] = join(window[key], points?.[key], n, m);
  for (const feature of features) {
    const [own, other] = [window.by_feature[feature], points?.by_feature[feature]];
    next.by_feature[feature] = Object.fromEntries(OF_FEATURE.map((key) => [key, join(own?.[key], other?.[key], n, m)]));
  }
  const swaps = [...window.models, ...(points?.models ?? [])].filter((one, i, all) => !i || one.version !== all[i - 1].version);
  next.models = swaps.filter((one, i) => one.time >= next.time[0] || swaps[i + 1] === undefined || swaps[i + 1].time > next.time[0]);
  return next;
}
