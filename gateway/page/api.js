// Requests to the gateway, and whether it and its daemon can be reached.
import { signal } from "./vendor/signals.js";
import { claim } from "./kept.js";

/** "ok"; "daemon": the gateway answers and its daemon does not; "gateway": no answer at all. */
export const health = signal("ok");
/** GET /session: who the visitor is, and what is there for them. Null before the first answer. */
export const session = signal(null);

/** Seconds to wait where an answer doesn't say how long. */
const RETRY_S = 3;
const WATCH_MS = 2000;

export class ApiError extends Error {
  constructor(status, code, message, { param = null, retryable = false, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryable, retryAfter: retryAfter ?? RETRY_S });
  }
}

/** Whether the service is there, and can't keep what it speaks. */
export const isFull = (error) => error.message.startsWith("durable:");

/** An answer with a good status. Throws ApiError; an abort is thrown as it is. */
export async function ask(method, path, { json, headers = {}, ...options } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      credentials: "same-origin",
      ...(json === undefined ? {} : { body: JSON.stringify(json) }),
      ...options,
      headers: json === undefined ? headers : { "content-type": "application/json", ...headers },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    away("gateway");
    throw new ApiError(0, "offline", error.message, { retryable: true });
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const error = body.error ?? {};
  const retryMs = Number(answer.headers.get("retry-after-ms"));
  const retryS = retryMs ? retryMs / 1000 : Number(answer.headers.get("retry-after")) || null;
  // Proxies answer 502 and 504 themselves while the gateway is away.
  const proxy = !body.error && [502, 503, 504].includes(answer.status);
  if (proxy) away("gateway");
  else if ((error.code === "unavailable" && !isFull(error)) || error.code === "shutting_down") away("daemon");
  if (answer.status === 401 && session.value) refreshSession();
  throw new ApiError(answer.status, error.code ?? "unavailable", error.message ?? answer.statusText, {
    param: error.param,
    retryable: answer.headers.get("x-should-retry") === "true" || proxy,
    retryAfter: retryS,
  });
}

export async function askJson(method, path, options) {
  return (await ask(method, path, options)).json();
}

/** Event by event: {event, data} with data decoded, and {comment} for lines that a reader may ignore. */
export async function* serverEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const block = rest.slice(0, end);
        rest = rest.slice(end + 2);
        const found = { event: "message", data: null };
        for (const line of block.split("\n")) {
          if (line.startsWith(":")) yield { comment: line.slice(1).trim() };
          else if (line.startsWith("event:")) found.event = line.slice(6).trim();
          else if (line.startsWith("data:")) found.data = JSON.parse(line.slice(5));
        }
        if (found.data !== null) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export async function refreshSession() {
  try {
    let found = await askJson("GET", "session");
    if (!found.customer && !found.needs_key) {
      // A cookie with a key that is out of force, where none is needed.
      await ask("DELETE", "session");
      found = await askJson("GET", "session");
    }
    // A visitor without a key is an address, which changes from place to place: what is kept is the browser's.
    if (found.customer && !claim(found.has_key ? found.customer : "")) return;
    session.value = found;
    if (found.customer && !found.daemon) away("daemon");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
}

// --- being away, and back

let watching = null;
const returned = new Set();

/** Call `then` each time that the service is back. */
export function onReturn(then) {
  returned.add(then);
  return () => returned.delete(then);
}

function away(which) {
  health.value = which;
  watching ??= setInterval(look, WATCH_MS);
}

let looking = false;

/** Ask whether it is back. */
export async function look() {
  if (looking || health.value === "ok") return;
  looking = true;
  try {
    const answer = await fetch("readyz", { cache: "no-store" });
    health.value = answer.ok ? "ok" : answer.status === 503 ? "daemon" : "gateway";
  } catch {
    health.value = "gateway";
  } finally {
    looking = false;
  }
  if (health.value !== "ok") return;
  clearInterval(watching);
  watching = null;
  await refreshSession();
  for (const then of returned) then();
}

addEventListener("online", look);
document.addEventListener("visibilitychange", () => document.hidden || look());

// --- small things

export const pause = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    }, { once: true });
  });

/** A name of its own for a request. (crypto.randomUUID is for https alone.) */
export function freshKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
