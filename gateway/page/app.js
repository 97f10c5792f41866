// The page: its frame, its views, the language, the key.
import { render } from "./vendor/preact.js";
import { useEffect, useState } from "./vendor/hooks.js";
import { signal } from "./vendor/signals.js";
import { ApiError, ask, health, onReturn, pause, refreshSession, session } from "./api.js";
import { Batch, chooseText } from "./batch.js";
import { Dock } from "./dock.js";
import { History, jobs, onAgain, readJobs, useJobs } from "./history.js";
import { startAnew } from "./kept.js";
import { Speak, change, onLong, write } from "./speak.js";
import { resume } from "./takes.js";
import { firstLanguage, language, speakLanguage, switchLanguage, t } from "./texts.js";
import { Field, Icon, IconButton, html, wordsFor } from "./ui.js";
import { readVoices } from "./voicepicker.js";
import { Voices } from "./voices.js";

const VIEWS = { speak: Speak, voices: Voices, history: History, batch: Batch };

const ICON = new URL("icon.svg", import.meta.url).pathname;
const view = signal(viewOf(location.hash));

function viewOf(hash) {
  return Object.keys(VIEWS).includes(hash.slice(1)) ? hash.slice(1) : "speak";
}

addEventListener("hashchange", () => {
  view.value = viewOf(location.hash);
  scrollTo(0, 0);
});

function go(name) {
  location.hash = name;
}

onAgain.then = (text, values) => {
  write(text);
  const { voice, format, speed, seed } = values;
  change(Object.fromEntries(Object.entries({ voice, format, speed, seed }).filter(([, value]) => value !== undefined)));
  go("speak");
};

onLong.then = (text) => {
  chooseText(text);
  go("batch");
};

/** What went wrong where no part of the page expected it. */
const trouble = signal("");

function noteTrouble(error) {
  if (error?.name === "AbortError") return;
  trouble.value = error?.message || String(error);
}

addEventListener("error", (event) => event.error && noteTrouble(event.error));
addEventListener("unhandledrejection", (event) => noteTrouble(event.reason));

function Page() {
  const Shown = VIEWS[view.value];
  const known = session.value?.customer;
  useEffect(() => { document.title = view.value === "speak" ? "GLM-TTS" : `${t(view.value)} · GLM-TTS`; }, [view.value, language.value]);
  return html`
    <a class="skip" href="#text" onClick=${(event) => { event.preventDefault(); (document.getElementById("text") ?? document.querySelector("main"))?.focus(); }}>${t("skip")}</a>
    <header class="top">
      <a class="brand" href="#speak"><img src=${ICON} alt="" width="28" height="28" /><span>GLM-TTS</span></a>
      ${known && html`<nav aria-label=${t("page_of")}>${Object.keys(VIEWS).map((name) => html`<a key=${name} href=${`#${name}`}
        aria-current=${view.value === name ? "page" : undefined}><${Icon} name=${name} /><span>${t(name)}</span></a>`)}</nav>`}
      <div class="top-end">
        <a class="api" href="docs">API</a>
        <button type="button" class="quiet" lang=${language.value === "zh" ? "en" : "zh-CN"} onClick=${switchLanguage}>${t("another_language")}</button>
        ${session.value?.has_key && html`<${IconButton} icon="out" label=${t("key_log_out")} onClick=${logOut} />`}
      </div>
    </header>
    ${health.value !== "ok" && session.value && html`<p class="banner" role="alert"><span class="spinner"></span>${t(`away_${health.value}`)}</p>`}
    ${trouble.value && html`<p class="banner bad" role="alert"><span>${t("unexpected", { message: trouble.value })}</span>
      <button type="button" class="small" onClick=${() => location.reload()}>${t("reload")}</button>
      <${IconButton} icon="close" label=${t("close")} onClick=${() => { trouble.value = ""; }} /></p>`}
    <main tabindex="-1">${!session.value
      ? html`<p class="opening" role="status"><span class="spinner"></span>${t(health.value === "ok" ? "connecting" : `away_${health.value}`)}</p>`
      : known ? html`<${Known} Shown=${Shown} />` : html`<${Login} />`}</main>
    ${known && html`<${Dock} />`}`;
}

function Known({ Shown }) {
  useJobs(Shown);
  return html`<${Shown} />`;
}

function Login() {
  const [key, setKey] = useState("");
  const [problem, setProblem] = useState("");
  const send = async (event) => {
    event.preventDefault();
    try {
      await ask("POST", "session", { json: { key: key.trim() } });
      setKey("");
      await open();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error.status === 401 ? t("key_wrong") : wordsFor(error));
    }
  };
  return html`<form class="login card" onSubmit=${send}>
    <header><img src=${ICON} alt="" width="44" height="44" /><h1>${t("key_title")}</h1></header>
    <${Field} id="key" label=${t("key")} hint=${t("key_hint")} error=${problem}>
      <input id="key" type="password" autocomplete="current-password" required placeholder="glm-…" aria-describedby="key-hint"
        value=${key} onInput=${(event) => { setKey(event.target.value); setProblem(""); }} /><//>
    <button type="submit" class="primary">${t("key_log_in")}</button>
  </form>`;
}

async function logOut() {
  try {
    await ask("DELETE", "session");
  } catch (error) {
    // The cookie is still there, and the page says that there is no connection.
    if (!error.retryable) throw error;
    return;
  }
  startAnew();
}

/** Read what the views show, and go on with a job that an earlier page has sent. */
async function open() {
  await refreshSession();
  if (!session.value?.customer) return;
  await Promise.all([readVoices(), readJobs()]);
  const unfinished = jobs.value?.find((job) => ["waiting", "running"].includes(job.status) && job.priority !== "batch" && job.text);
  if (unfinished) resume(unfinished, unfinished.text);
}

onReturn(() => { readVoices(); readJobs(); });
/** The words, however long the connection takes. */
async function firstWords() {
  while (true) {
    try {
      return await speakLanguage(firstLanguage());
    } catch {
      await pause(1000);
    }
  }
}

await firstWords();
document.getElementById("boot")?.remove();
render(html`<${Page} />`, document.getElementById("app"));
await open();
