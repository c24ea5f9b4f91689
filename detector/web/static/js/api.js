// The API: answers, refusals in words, and the right to write. The token is kept for this tab only.

const ROOT = "api/v1";
const KEY = "longwatch.token";

export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

let token = "";
try {
  token = sessionStorage.getItem(KEY) ?? "";
} catch {
  // forbidden: a token then holds until the page is left
}

const headers = (given = token) => ({ "X-Longwatch": "1", ...(given ? { Authorization: `Bearer ${given}` } : {}) });

/** Return a path with its query; null and "" are left out. */
export function withQuery(path, query = {}) {
  const chosen = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return chosen.length ? `${path}?${new URLSearchParams(chosen)}` : path;
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(`${ROOT}${path}`, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The daemon cannot be reached.");
  }
  const text = await answer.text();
  let body = null;
  try {
    body = text ? JSON.parse(text) : null;
  } catch {
    // not of the API: a proxy's page
  }
  if (!answer.ok) throw new Refusal(answer.status, body?.error ?? `The daemon answered ${answer.status}.`);
  return body;
}

export const get = (path, query, signal) => ask(withQuery(path, query), { headers: headers(), signal });

export const send = (method, path, body) =>
  ask(path, { method, headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) });

/** Try a token; return whether it may write. "" forgets the one that is kept. */
export async function useToken(given) {
  if (given && !(await ask("/status", { headers: headers(given) })).writable) return false;
  token = given;
  try {
    if (given) sessionStorage.setItem(KEY, given);
    else sessionStorage.removeItem(KEY);
  } catch {
    // see above
  }
  return true;
}

export const hasToken = () => token !== "";
export const eventsAddress = (stream) => `${ROOT}${withQuery("/events", { stream })}`;

let offered = null;

/** Return whether this daemon's API has a path, by its own description: what it has not is not shown. */
export async function offers(method, path) {
  offered ??= ask("/openapi.json", {}).then((found) => found.paths).catch((error) => {
    offered = null;
    throw error;
  });
  return method.toLowerCase() in ((await offered)[`/api/v1${path}`] ?? {});
}
