// What the detector's own names mean, for whoever reads them at night.

/** By channel: its name in words, and what it says of the stream. docs/scoring.md explains each. */
export const CHANNELS = {
  forecast: ["unlike the forecast", "The value is far from what the network expected of it."],
  level: ["another level", "The level of late is far from what is usual at this hour."],
  still: ["stands still", "The value has not changed for longer than it ever does."],
  coupling: ["out of step", "The feature is far from what the stream's other features let expect."],
  novel: ["never seen", "Nothing like it is remembered of this stream."],
  symbol: ["improbable symbol", "This symbol is improbable after those before it."],
  silence: ["silent", "The stream sends nothing, for longer than its rhythm makes likely."],
};

export const channelWord = (channel) => CHANNELS[channel]?.[0] ?? (channel || "–");

/** Words for the numbers that a channel gives as evidence. */
export const EVIDENCE = {
  observed: "observed",
  expected: "expected",
  lower: "band from",
  upper: "band to",
  level: "level of late",
  usual: "usual at this hour",
  seconds: "unchanged for",
  usual_longest_seconds: "longest usual",
  nearest: "nearest seen",
  nearest_seconds_ago: "seen at most",
  observed_probability: "probability of what came",
  expected_probability: "probability of the likeliest",
  silent_seconds: "no event for",
  usual_seconds: "usual gap",
};

const ENDED = {
  back: "the old level came back",
  accepted: "the new level was taken as normal",
  silence: "the stream fell silent",
  false: "a person called it false",
  reset: "the stream was reset",
  gone: "the stream is taken to be gone",
  muted: "nobody wants to know any more",
};

/** What ended an alert. */
export const endedBy = ({ channel, resolved_by: by }) => (channel === "silence" && by === "back" ? "it sends again" : ENDED[by] ?? by);

/** A score in words: it is log10 of a return period in events. */
export function rarity(score) {
  if (score === null || score === undefined) return "";
  if (score < 1) return "ordinary";
  const n = 10 ** score;
  if (n >= 1e9) return "once in over a billion events";
  const rounded = Number(n.toPrecision(1));
  return `once in about ${rounded.toLocaleString("en-GB")} events`;
}
