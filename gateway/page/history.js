// Jobs of the last day: played again, fetched, spoken again.
import { useEffect } from "./vendor/hooks.js";
import { computed, signal } from "./vendor/signals.js";
import { ApiError, ask, askJson, health } from "./api.js";
import * as player from "./player.js";
import { changes, fileOf, forget, remembered, take } from "./takes.js";
import { clock, language, span, t, tn } from "./texts.js";
import { Empty, Icon, IconButton, html, wordsFor } from "./ui.js";

const DAY_S = 24 * 3600;
const POLL_MS = 2000;
const FIRST = 50;

const listed = signal(null);
const shown = signal(FIRST);

/** The newest first, without those that the visitor has removed; null before they are read. */
export const jobs = computed(() => listed.value && listed.value
  .filter((job) => job.created_at > Date.now() / 1000 - DAY_S && !remembered.value[job.id]?.hidden)
  .map((job) => ({ ...job, ...textOf(job) })));

function textOf(job) {
  const mine = remembered.value[job.id];
  return { text: mine?.text ?? job.label ?? "", format: mine?.format ?? job.format ?? "wav", voice: mine?.voice ?? "" };
}

let reading = null;

export async function readJobs() {
  reading ??= askJson("GET", "v1/audio/jobs?limit=500").then((answer) => { listed.value = answer.data; }, (error) => {
    if (!(error instanceof ApiError)) throw error;
  }).finally(() => { reading = null; });
  return reading;
}

const isActive = (job) => job.status === "waiting" || job.status === "running";

/** Keeps the list true: read for each view, after each take, and when the visitor comes back from another tab. */
export function useJobs(view) {
  useEffect(() => { readJobs(); }, [changes.value, view]);
  useEffect(() => {
    const look = () => document.hidden || readJobs();
    document.addEventListener("visibilitychange", look);
    return () => document.removeEventListener("visibilitychange", look);
  }, []);
  const active = jobs.value?.some(isActive);
  useEffect(() => {
    if (!active) return undefined;
    const timer = setInterval(() => document.hidden || health.value !== "ok" || readJobs(), POLL_MS);
    return () => clearInterval(timer);
  }, [active]);
}

export function History() {
  const all = jobs.value;
  if (!all) return html`<p class="hint" role="status">${t("connecting")}</p>`;
  return html`<section class="view" aria-labelledby="history-title">
    <header class="view-head"><h1 id="history-title">${t("history")}</h1><p>${t("history_hint")}</p></header>
    ${all.length
      ? html`<${JobList} jobs=${all.slice(0, shown.value)} />
        ${all.length > shown.value && html`<button type="button" class="wide" onClick=${() => { shown.value += FIRST; }}>
          ${t("show_more", { count: all.length - shown.value })}</button>`}`
      : html`<div class="card"><${Empty} icon="history" title=${t("history_empty")} action=${html`<a class="button" href="#speak">${t("speak")}</a>`}>${t("history_empty_hint")}<//></div>`}
  </section>`;
}

export function JobList({ jobs: shownJobs }) {
  return html`<ul class="jobs card">${shownJobs.map((job) => html`<${Row} key=${job.id} job=${job} />`)}</ul>`;
}

function when(seconds) {
  const date = new Date(seconds * 1000);
  const time = new Intl.DateTimeFormat(language.value, { hour: "numeric", minute: "2-digit" }).format(date);
  return date.toDateString() === new Date().toDateString() ? time : `${t("yesterday")} ${time}`;
}

function Row({ job }) {
  const title = job.text || tn("text_of", job.characters);
  const file = fileOf(job.id, job.format, title, job.audio_s);
  const isThis = player.track.value?.id === job.id;
  const playing = isThis && player.playing.value;
  const facts = [when(job.created_at), job.voice, job.status === "done" && job.audio_s ? clock(job.audio_s) : ""].filter(Boolean);
  return html`<li class=${`job ${job.status}`} aria-current=${isThis ? "true" : undefined}>
    ${job.status === "done"
      ? html`<button type="button" class="play small" aria-label=${`${t(playing ? "pause" : "play")}: ${title.slice(0, 60)}`}
          onClick=${() => (isThis ? player.toggle() : playFile(file))}><${Icon} name=${playing ? "pause" : "play"} /></button>`
      : html`<span class="job-mark">${isActive(job) ? html`<span class="spinner"></span>` : html`<${Icon} name=${job.status === "cancelled" ? "close" : "warn"} />`}</span>`}
    <div class="job-words">
      <p class="job-text" dir="auto">${title}</p>
      <p class="job-facts">${facts.join(" · ")}${job.status !== "done" && html` · <${State} job=${job} />`}</p>
    </div>
    <div class="job-actions">
      ${job.status === "done" && html`<a class="icon-button" href=${file.url} download=${file.name}
        aria-label=${`${t("download")}: ${title.slice(0, 60)}`} title=${t("download")}><${Icon} name="download" /></a>`}
      ${job.text && html`<${IconButton} icon="again" label=${t("again")} onClick=${() => again(job)} />`}
      ${isActive(job)
        ? html`<${IconButton} icon="close" label=${t("cancel")} onClick=${() => cancel(job)} />`
        : html`<${IconButton} icon="remove" label=${t("remove")} onClick=${() => remove(job)} />`}
    </div>
  </li>`;
}

export function State({ job }) {
  let words = t(`state_${job.status}`);
  if (job.status === "running" && job.segments) words += ` ${Math.round((100 * (job.segment ?? 0)) / job.segments)} %`;
  if (job.status === "waiting" && job.estimated_wait_s) words += ` ${t("state_wait", { time: span(job.estimated_wait_s) })}`;
  if (job.status === "failed" && job.error) words += `: ${wordsFor(job.error)}`;
  return html`<span class="state">${words}</span>`;
}

function playFile(file) {
  // What was made last and is still shown as a take gives way to what is played.
  if (take.value?.state === "done") take.value = null;
  player.play(file);
}

/** Set by the page: shows the text and its settings for another try. */
export const onAgain = { then: () => {} };

function again(job) {
  onAgain.then(job.text, remembered.value[job.id] ?? {});
}

async function cancel(job) {
  try {
    await ask("DELETE", `v1/audio/jobs/${job.id}`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
  readJobs();
}

function remove(job) {
  if (player.track.value?.id === job.id) player.clear();
  forget(job.id);
}
