// Speech that the visitor asked for: sent, refused and sent again, heard while it is made, found again after a break.
import { signal } from "./vendor/signals.js";
import { ApiError, ask, askJson, freshKey, isFull, pause, serverEvents, session } from "./api.js";
import { keep, kept, onKept } from "./kept.js";
import { Unpacker, fromBase64, wholeFile } from "./live.js";
import * as player from "./player.js";

/** The take that is being made or was made last:
 * {state, text, id, position, wait, segment, segments, error, retryAt, seconds}
 * state: sending, refused, waiting, speaking, reconnecting, done, failed, cancelled */
export const take = signal(null);
/** Texts and settings of takes by the id of their job, which this browser keeps. */
export const remembered = signal(kept("takes", {}));
/** Counts the ends of takes: lists of jobs are read anew. */
export const changes = signal(0);

onKept("takes", (found) => { remembered.value = found ?? {}; });

const POLL_MS = 1000;
const MOST_REMEMBERED = 300;
const KEPT_MS = 25 * 3600 * 1000;
const LABEL = 120;
const SUFFIX = { mp3: "mp3", opus: "ogg", flac: "flac", wav: "wav" };

let control = null;

function update(change) {
  take.value = { ...take.value, ...change };
}

export function fileOf(id, format, title, seconds) {
  const words = cut(title.replace(/[\\/:*?"<>|\s\p{Cc}\p{Cs}]+/gu, " "), 40).replace(/[. ]+$/, "") || "speech";
  return { id, title, url: `v1/audio/jobs/${id}/audio`, name: `${words}.${SUFFIX[format] ?? "wav"}`, seconds };
}

export function remember(id, values) {
  const now = Date.now();
  const all = Object.entries({ ...remembered.value, ...kept("takes", {}), [id]: { ...values, at: now } });
  const recent = all.filter(([, value]) => now - value.at < KEPT_MS).slice(-MOST_REMEMBERED);
  remembered.value = Object.fromEntries(recent);
  keep("takes", remembered.value);
}

export function forget(id) {
  remember(id, { ...remembered.value[id], hidden: true });
  changes.value++;
}

/** The first characters of a text; none of them in halves. */
function cut(text, most) {
  return [...text.trim().slice(0, 2 * most)].slice(0, most).join("").trim();
}

/** One line for lists of jobs; control characters are not for labels. */
export function labelOf(text) {
  return cut(text.replace(/[\p{Cc}\p{Cs}\s]+/gu, " "), LABEL);
}

/** A text as the service takes it: without control characters and halves of characters, which programs leave behind. */
function spoken(text) {
  return text.replace(/[^\P{Cc}\t\n\r]|\p{Cs}/gu, " ");
}

/** The body of a request for speech. */
export function bodyOf(text, { voice, once, format, speed, seed, priority }) {
  const body = { input: spoken(text), response_format: format, seed, priority, label: labelOf(text) };
  if (once) Object.assign(body, { ref_audio: once.audio, ref_text: once.text });
  else if (voice) body.voice = voice;
  if (speed && speed !== 1) body.speed = speed;
  return body;
}

/** Have a text spoken, and play it while it is made. To be called in a click. */
export async function speak(text, settings) {
  stopFollowing();
  const mine = new AbortController();
  control = mine;
  const rate = session.value?.daemon?.sample_rate ?? 24000;
  const live = player.begin(text, rate);
  take.value = { state: "sending", text, settings, id: null, segment: 0, segments: 0 };
  const json = { ...bodyOf(text, settings), durable: session.value?.daemon?.durable !== false, stream_format: "sse" };
  try {
    const answer = await sendUntilTaken(json, mine.signal);
    const id = answer.headers.get("x-glmtts-job");
    update({ state: "waiting", id });
    const { once, ...others } = settings;
    remember(id, { text, ...others });
    changes.value++;
    const bytes = await hear(answer, live, settings.format, rate);
    if (mine.signal.aborted) return;
    if (bytes) end(live, true, { bytes: json.durable ? null : bytes });
    else await followJob(id, live, mine.signal);
  } catch (error) {
    if (error.name === "AbortError" || mine.signal.aborted) return;
    fail(error, live);
  }
}

/** `bytes`: what was streamed, of a job whose file the service does not keep. */
function end(live, whole, { seconds, bytes }) {
  const { id, text, settings } = take.value;
  update({ state: "done", seconds: seconds ?? live.duration });
  const file = fileOf(id, settings.format, text, take.value.seconds);
  if (bytes) file.url = URL.createObjectURL(wholeFile(bytes, settings.format));
  if (live) player.complete(live, file, whole);
  else player.offer(file);
  changes.value++;
}

function fail(error, live) {
  if (live) player.giveUp(live);
  update({ state: error.code === "cancelled" ? "cancelled" : "failed", error });
  changes.value++;
}

/** The answer, after as many refusals as it takes. */
async function sendUntilTaken(json, signal) {
  const headers = { "idempotency-key": freshKey() };
  while (true) {
    try {
      return await ask("POST", "v1/audio/speech", { json, headers, signal });
    } catch (error) {
      if (!(error instanceof ApiError) || !error.retryable || error.status === 500) throw error;
      if (json.durable && isFull(error)) {
        // The service can't write to its disk: it speaks, and keeps nothing.
        json.durable = false;
        continue;
      }
      await countDown(error, signal);
      if (signal.aborted) throw new DOMException("aborted", "AbortError");
      update({ state: "sending", error: null });
    }
  }
}

let hurry = () => {};

/** Try now, and don't wait for the end of the count-down. */
export function tryNow() {
  hurry();
}

async function countDown(error, signal) {
  const waitMs = Math.min(120, Math.max(1, error.retryAfter)) * 1000;
  update({ state: "refused", error, retryAt: Date.now() + waitMs, waitMs });
  await Promise.race([pause(waitMs, signal), new Promise((resolve) => { hurry = resolve; })]);
}

/** Read a stream of events to its end: its bytes, or null if it broke off before. Throws ApiError for a job that failed. */
async function hear(answer, live, format, rate) {
  const unpacker = new Unpacker(format, rate, (samples) => player.feed(live, samples),
    () => live.duration - live.time < 4);
  const parts = [];
  try {
    for await (const { event, data, comment } of serverEvents(answer)) {
      if (comment !== undefined) note(comment);
      else if (event === "speech.audio.delta") {
        if (take.value.state === "waiting") update({ state: "speaking" });
        parts.push(fromBase64(data.audio));
        unpacker.push(parts.at(-1));
      } else if (event === "speech.audio.done") {
        await unpacker.finish();
        return parts;
      } else if (event === "speech.audio.error") {
        const { code, message } = data.error;
        if (["unavailable", "shutting_down", "timeout", "slow_consumer"].includes(code)) return null;
        throw new ApiError(500, code, message);
      }
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
  }
  return null;
}

/** What the daemon says of a job: "queued position=3 wait=12", "progress segment=1 segments=2". */
function note(line) {
  const [word, ...pairs] = line.split(" ");
  const values = Object.fromEntries(pairs.map((pair) => pair.split("=")).map(([name, value]) => [name, Number(value)]));
  if (word === "queued") update({ state: "waiting", position: values.position, wait: values.wait });
  else if (word === "started") update({ state: "speaking" });
  else if (word === "progress") update({ state: "speaking", ...values });
}

/** Wait for a job whose stream is broken, or that an earlier page sent. Throws ApiError for one that failed. */
async function followJob(id, live, signal, { quiet = false } = {}) {
  if (!quiet) update({ state: "reconnecting" });
  while (!signal.aborted) {
    let job;
    try {
      job = await askJson("GET", `v1/audio/jobs/${id}`, { signal });
    } catch (error) {
      if (!(error instanceof ApiError) || !error.retryable) throw error;
      update({ state: "reconnecting" });
      await pause(POLL_MS, signal);
      continue;
    }
    if (job.status === "done") return end(live, false, { seconds: job.audio_s });
    if (job.error) throw new ApiError(500, job.error.code, job.error.message);
    if (job.status === "cancelled") throw new ApiError(409, "cancelled", "");
    update(job.status === "waiting"
      ? { state: "waiting", position: job.position, wait: job.estimated_wait_s }
      : { state: "speaking", segment: job.segment ?? 0, segments: job.segments ?? 0 });
    await pause(POLL_MS, signal);
  }
}

/** Show a job of an earlier page that goes on. */
export async function resume(job, text) {
  if (control || take.value) return;
  const mine = new AbortController();
  control = mine;
  const settings = remembered.value[job.id] ?? {};
  take.value = { state: "waiting", text, settings, id: job.id, segment: 0, segments: 0, position: job.position };
  try {
    await followJob(job.id, null, mine.signal, { quiet: true });
  } catch (error) {
    if (error.name !== "AbortError") fail(error, null);
  }
}

/** Cancel the take, here and in the daemon. */
export async function cancel() {
  const { id, state } = take.value ?? {};
  stopFollowing();
  player.clear();
  take.value = null;
  if (!id || ["done", "failed", "cancelled"].includes(state)) return;
  try {
    await ask("DELETE", `v1/audio/jobs/${id}`);
  } catch {
    // It has ended, or ends with the listener that is gone.
  }
  changes.value++;
}

function stopFollowing() {
  control?.abort();
  control = null;
}
