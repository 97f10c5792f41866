// The view for whole files: a durable job for each line, which goes on without this page.
import { useEffect, useState } from "./vendor/hooks.js";
import { signal } from "./vendor/signals.js";
import { makeZip } from "./vendor/client-zip.js";
import { ApiError, ask, askJson, freshKey, health, pause, session } from "./api.js";
import { fileNames, linesOf, piecesOf, textOf } from "./batchfile.js";
import { keep, kept, onKept } from "./kept.js";
import * as player from "./player.js";
import { decoded, toBase64 } from "./recorder.js";
import { change, chosen, settings } from "./speak.js";
import { bodyOf, changes, fileOf, remember } from "./takes.js";
import { number, span, t, tn } from "./texts.js";
import { Field, Icon, IconButton, html, now, wordsFor } from "./ui.js";
import { VoicePicker, once } from "./voicepicker.js";

const MOST_BYTES = 8 << 20;
const POLL_MS = 1500;
const SHOWN = 200;
const AUDIO = /\.(wav|mp3|flac|ogg|opus|m4a|aac|webm|mp4)$/i;
const ENDED = ["done", "failed", "cancelled", "bad"];

/** {name, key, format, started, lines: [{number, text, file, state, id, error, ...}]}; state: unsent, sending, waiting,
 * running, done, failed, cancelled, bad */
export const batch = signal(restored());
const problem = signal("");
/** When the next line is sent, after a refusal. */
const pausedUntil = signal(0);
let sending = false;
/** Recordings that lines name, by file name: base64 of a WAV. They are not kept over a reload. */
let recordings = new Map();
/** The recording, not saved as a voice, that the lines without one of their own are spoken with. It is not kept either. */
const unsaved = signal(null);

function restored() {
  const found = kept("batch", null);
  return found && { ...found, resumed: true, lines: found.lines.map((line) => (line.state === "sending" ? { ...line, state: "unsent" } : line)) };
}

/** Whether this browser has room to keep the lines over a reload. */
const isKept = signal(true);

function edit(values) {
  batch.value = { ...batch.value, ...values };
  isKept.value = keep("batch", batch.value);
}

// What another tab does to it is shown here too; the tab that sends knows best.
onKept("batch", () => {
  if (!sending) batch.value = restored();
});

function editLine(index, values) {
  edit({ lines: batch.value.lines.map((line, at) => (at === index ? { ...line, ...values } : line)) });
}

// --- a file

async function choose(files) {
  problem.value = "";
  const file = files.find(({ name }) => !AUDIO.test(name));
  recordings = new Map();
  for (const recording of files.filter(({ name }) => AUDIO.test(name))) {
    try {
      recordings.set(recording.name, await toBase64((await decoded(recording)).blob));
    } catch {
      problem.value = t("error_audio_file", { name: recording.name });
    }
  }
  if (!file) return;
  if (file.size > MOST_BYTES) {
    problem.value = t("file_too_large", { name: file.name });
    return;
  }
  let text;
  try {
    text = await textOf(file);
  } catch {
    problem.value = t("error_encoding", { name: file.name });
    return;
  }
  const lines = linesOf(file.name, text).map(judged);
  if (!lines.length) problem.value = t("batch_empty_file", { name: file.name });
  else edit({ name: file.name, key: freshKey(), started: false, resumed: false, lines });
}

/** A text that is too long for once, in parts that are not. */
export function chooseText(text) {
  problem.value = "";
  recordings = new Map();
  const parts = piecesOf(text, session.value?.daemon?.text_chars ?? 5000);
  edit({ name: t("long_text"), key: freshKey(), started: false, resumed: false, lines: parts.map((part, index) => judged({ number: index + 1, text: part })) });
}

function judged(line) {
  const most = session.value?.daemon?.text_chars ?? 5000;
  const count = [...line.text ?? ""].length;
  let wrong = line.problem;
  if (!wrong && count > most) wrong = ["line_too_long", { count: number(count), most: number(most) }];
  if (!wrong && line.prompt && !recordings.has(baseName(line.prompt))) wrong = ["line_no_recording", { name: baseName(line.prompt) }];
  return { ...line, problem: wrong, state: wrong ? "bad" : "unsent" };
}

const baseName = (path) => path.split(/[\\/]/).pop();

// --- sending

async function send() {
  if (sending) return;
  sending = true;
  try {
    while (batch.value?.started && session.value?.customer) {
      const { lines, key } = batch.value;
      const index = lines.findIndex((line) => line.state === "unsent" && !lacksRecording(line));
      if (index < 0) break;
      await sendLine(lines[index], index, key);
    }
  } finally {
    sending = false;
    changes.value++;
  }
}

/** Whether a line waits for the recording that was not saved, which is gone after a reload. */
function lacksRecording(line) {
  return Boolean(batch.value.with?.once && !unsaved.value && !line.voice && !line.prompt);
}

async function sendLine(line, index, key) {
  const { format, priority, voice } = batch.value.with ?? {};
  const recording = line.prompt && recordings.get(baseName(line.prompt));
  if (line.prompt && !recording) {
    editLine(index, { state: "bad", problem: ["line_no_recording", { name: baseName(line.prompt) }] });
    return;
  }
  const values = {
    voice: line.voice ?? voice,
    once: recording ? { audio: recording, text: line.promptText } : line.voice ? null : unsaved.value,
    format, speed: batch.value.with?.speed, seed: line.seed ?? batch.value.with?.seed ?? 0, priority,
  };
  editLine(index, { state: "sending" });
  const isWanted = () => batch.value?.key === key && batch.value.lines[index].state === "sending";
  try {
    const headers = { "idempotency-key": `${key}-${line.number}-${line.tries ?? 0}` };
    const job = await askJson("POST", "v1/audio/jobs", { json: bodyOf(line.text, values), headers });
    if (!isWanted()) {
      // Stopped while it was on its way.
      ask("DELETE", `v1/audio/jobs/${job.id}`).catch(() => {});
      return;
    }
    editLine(index, { state: "waiting", id: job.id, error: null });
    remember(job.id, { text: line.text, voice: values.voice, format, seed: values.seed, speed: values.speed });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (!isWanted()) return;
    if (error.retryable && error.status !== 500) {
      editLine(index, { state: "unsent" });
      const waitMs = Math.min(120, Math.max(1, error.retryAfter)) * 1000;
      pausedUntil.value = Date.now() + waitMs;
      await pause(waitMs);
      pausedUntil.value = 0;
    } else editLine(index, { state: "failed", error: { code: error.code, message: error.message } });
  }
}

function start() {
  const allowed = session.value?.priorities ?? [];
  const { once: recording, ...values } = chosen();
  unsaved.value = recording;
  const priority = allowed.includes("batch") ? "batch" : values.priority;
  const format = values.format;
  const names = fileNames(batch.value.lines, { opus: "ogg" }[format] ?? format);
  edit({
    started: true,
    with: { ...values, once: Boolean(recording), priority, seed: settings.value.seed ?? 0 },
    lines: batch.value.lines.map((line, index) => ({ ...line, file: names[index] })),
  });
  send();
}

async function stop() {
  const { lines } = batch.value;
  edit({ started: false });
  for (const line of lines.filter(({ state }) => state === "waiting" || state === "running")) {
    ask("DELETE", `v1/audio/jobs/${line.id}`).catch(() => {});
  }
  edit({ lines: batch.value.lines.map((line) => (ENDED.includes(line.state) ? line : { ...line, state: "cancelled" })) });
}

function sendAgain() {
  edit({
    started: true,
    lines: batch.value.lines.map((line) => (["failed", "cancelled"].includes(line.state)
      ? { ...line, state: "unsent", error: null, tries: (line.tries ?? 0) + 1 } : line)),
  });
  send();
}

/** Read how the lines stand. */
async function look() {
  const open = batch.value?.lines.filter(({ state }) => state === "waiting" || state === "running") ?? [];
  if (!open.length || health.value !== "ok" || !session.value?.customer) return;
  try {
    const { data } = await askJson("GET", "v1/audio/jobs?limit=1000");
    const known = new Map(data.map((job) => [job.id, job]));
    // Those that newer jobs have pushed out of the list are asked for one by one, a few at a time.
    for (const line of open.filter(({ id }) => !known.has(id)).slice(0, 5)) {
      try {
        known.set(line.id, await askJson("GET", `v1/audio/jobs/${line.id}`));
      } catch (error) {
        if (error.code !== "job_not_found") throw error;
        known.set(line.id, { status: "failed", error: { code: "job_not_found" } });
      }
    }
    edit({
      lines: batch.value.lines.map((line) => {
        const job = line.id && !ENDED.includes(line.state) && known.get(line.id);
        return job ? { ...line, state: job.status, error: job.error ?? null, seconds: job.audio_s } : line;
      }),
    });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
}

// Also while another view is shown.
setInterval(() => document.hidden || look(), POLL_MS);
// Once it is known that these are the visitor's lines.
session.subscribe((found) => {
  if (found?.customer && batch.value?.started) send();
});

// --- the archive

const zipping = signal(false);

async function zip() {
  zipping.value = true;
  try {
    const done = batch.value.lines.filter(({ state }) => state === "done");
    async function* files() {
      for (const line of done) {
        yield { name: line.file, input: await ask("GET", `v1/audio/jobs/${line.id}/audio`) };
      }
    }
    const blob = await new Response(makeZip(files())).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${batch.value.name.replace(/\.[^.]*$/, "")}.zip`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    problem.value = wordsFor(error);
  } finally {
    zipping.value = false;
  }
}

// --- what is shown

export function Batch() {
  useEffect(() => { look(); }, []);
  return html`<section class="view" aria-labelledby="batch-title">
    <header class="view-head"><h1 id="batch-title">${t("batch_title")}</h1></header>
    ${batch.value ? html`<${Lines} />` : html`<${Drop} />`}
    ${problem.value && html`<p class="problem" role="alert">${problem.value}</p>`}
    ${!batch.value && html`<details class="help"><summary>${t("batch_help")}</summary>
      <ul>${["txt", "csv", "srt", "jsonl"].map((kind) => html`<li key=${kind}>${t(`batch_help_${kind}`)}</li>`)}</ul></details>`}
  </section>`;
}

function Drop() {
  const [over, setOver] = useState(false);
  return html`<label class=${`drop ${over ? "over" : ""}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }}
    onDragLeave=${() => setOver(false)} onDrop=${(event) => { event.preventDefault(); setOver(false); choose([...event.dataTransfer.files]); }}>
    <span class="empty-icon"><${Icon} name="upload" /></span><strong>${t("batch_drop")}</strong><span>${t("batch_formats")}</span>
    <span class="hint">${t("attach_hint")}</span>
    <input type="file" multiple aria-label=${t("batch_drop")} onChange=${(event) => { choose([...event.target.files]); event.target.value = ""; }} />
  </label>`;
}

function Lines() {
  const { name, lines, started, resumed } = batch.value;
  const good = lines.filter(({ state }) => state !== "bad");
  const done = lines.filter(({ state }) => state === "done").length;
  const failed = lines.filter(({ state }) => ["failed", "cancelled"].includes(state)).length;
  const bad = lines.length - good.length;
  const going = started && good.some(({ state }) => !ENDED.includes(state));
  const waits = going && lines.some((line) => line.state === "unsent" && lacksRecording(line));
  const [shown, setShown] = [shownLines.value, (value) => { shownLines.value = value; }];
  return html`<div class="card">
    <div class="batch-head">
      <div><h2>${name}</h2><p role="status">${[
        started ? t("batch_done", { done: number(done), count: number(good.length) }) : t("batch_count", { count: number(lines.length) }),
        bad ? tn("batch_bad", bad) : "",
      ].filter(Boolean).join(" · ")}</p></div>
      ${!started && !done && good.length > 0 && html`<button type="button" class="primary" onClick=${start}>${tn("batch_start", good.length)}</button>`}
      ${going && html`<button type="button" class="small" onClick=${stop}>${t("batch_stop")}</button>`}
      ${!going && failed > 0 && html`<button type="button" class="small" onClick=${sendAgain}>${t("batch_again", { count: failed })}</button>`}
      ${done > 0 && html`<button type="button" class=${going ? "small" : "primary"} disabled=${zipping.value} onClick=${zip}>
        ${zipping.value ? html`<span class="spinner"></span>` : html`<${Icon} name="download" />`}${t("batch_zip")}</button>`}
      ${!going && html`<button type="button" class="small" onClick=${() => { batch.value = null; problem.value = ""; keep("batch", null); }}>${t("batch_new")}</button>`}
    </div>
    ${started && html`<progress max=${good.length} value=${done + failed} aria-label=${t("batch_done", { done, count: good.length })}></progress>`}
    ${pausedUntil.value > now.value && html`<p class="note" role="status">${t("batch_paused", { time: span((pausedUntil.value - now.value) / 1000) })}</p>`}
    ${!isKept.value && html`<p class="note">${t("batch_not_kept")}</p>`}
    ${waits && html`<${RecordingNeeded} />`}
    ${resumed && going && !waits && !pausedUntil.value && html`<p class="note">${t("batch_resumed")}</p>`}
    ${!started && !done && html`<div class="batch-settings">
      <${VoicePicker} value=${settings.value.voice} onChange=${(voice) => change({ voice })} />
      <${Field} id="batch-format" label=${t("format")}>
        <select id="batch-format" value=${settings.value.format} onChange=${(event) => change({ format: event.target.value })}>
          ${(session.value?.formats ?? []).filter((one) => one !== "pcm").map((one) => html`<option key=${one} value=${one}>${one.toUpperCase()}</option>`)}
        </select><//>
    </div>`}
    <ol class="lines" tabindex="0" aria-label=${t("batch_count", { count: lines.length })}>${lines.slice(0, shown).map((line) => html`<${Line} key=${line.number} line=${line} />`)}
      ${lines.length > shown && html`<li class="line"><button type="button" class="quiet" onClick=${() => setShown(shown + SHOWN)}>
        ${t("show_more", { count: number(lines.length - shown) })}</button></li>`}</ol>
  </div>`;
}

function RecordingNeeded() {
  const goOn = () => {
    unsaved.value = once.value;
    send();
  };
  return html`<div class="note" role="status"><p>${t("batch_recording_needed")}</p>
    ${once.value ? html`<button type="button" class="small" onClick=${goOn}>${t("batch_use_recording")}</button>`
      : html`<a class="button" href="#voices">${t("voices")}</a>`}</div>`;
}

const shownLines = signal(SHOWN);

function Line({ line }) {
  const format = batch.value.with?.format ?? "wav";
  const file = line.id && { ...fileOf(line.id, format, line.text, line.seconds), name: line.file };
  const wrong = line.problem ? t(...line.problem) : line.error && wordsFor(line.error);
  const playing = file && player.track.value?.id === line.id && player.playing.value;
  return html`<li class=${`line ${line.state}`}>
    <span class="line-number">${line.number}</span>
    <div class="line-words"><p dir="auto">${line.text || "–"}</p>${wrong && html`<p class="problem">${wrong}</p>`}</div>
    ${!wrong && html`<span class="state">${t(`state_${line.state}`)}</span>`}
    ${line.state === "done" && html`<${IconButton} icon=${playing ? "pause" : "play"} label=${`${t(playing ? "pause" : "play")}: ${t("line")} ${line.number}`}
      onClick=${() => (player.track.value?.id === line.id ? player.toggle() : player.play(file))} />`}
    ${["waiting", "running", "sending"].includes(line.state) && html`<span class="spinner"></span>`}
  </li>`;
}
