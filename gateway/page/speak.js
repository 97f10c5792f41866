// The view for writing a text and hearing it.
import { useEffect, useRef } from "./vendor/hooks.js";
import { computed, signal } from "./vendor/signals.js";
import { session } from "./api.js";
import { JobList, jobs } from "./history.js";
import { isMaking } from "./dock.js";
import { keep, kept } from "./kept.js";
import * as player from "./player.js";
import { speak, take } from "./takes.js";
import { language, number, t } from "./texts.js";
import { Field, Icon, html } from "./ui.js";
import { VoicePicker, once } from "./voicepicker.js";

const EXAMPLES = {
  en: [
    "Good morning! The next train to the airport leaves from platform two in four minutes.",
    "“Where does the river go?” she asked. “To the sea,” said the ferryman, “as do all who can't stop talking.”",
    "Today's headlines: rain in the north, sun in the south, and a record harvest of very small apples.",
  ],
  zh: [
    "各位旅客请注意，开往机场的下一班列车将于四分钟后从二号站台发车。",
    "枯藤老树昏鸦，小桥流水人家，古道西风瘦马。夕阳西下，断肠人在天涯。",
    "今天气温 26 度，北部有小雨，南部晴朗，出门记得带伞哦。",
  ],
};
const SPEEDS = { least: 0.5, most: 2, step: 0.05 };

export const draft = signal(kept("draft", ""));
export const settings = signal({ voice: "", format: "wav", speed: 1, seed: null, priority: "interactive", ...kept("settings", {}) });

export function change(values) {
  settings.value = { ...settings.value, ...values };
  keep("settings", settings.value);
}

/** Settings as a request takes them: with a seed, and with what this visitor may use. */
export function chosen() {
  const { seed, priority, ...others } = settings.value;
  const allowed = session.value?.priorities ?? [];
  return {
    ...others,
    seed: seed ?? Math.floor(Math.random() * 1_000_000),
    priority: allowed.includes(priority) ? priority : allowed[0] ?? "interactive",
    once: once.value,
  };
}

const most = computed(() => session.value?.daemon?.text_chars ?? 5000);
/** Characters as the daemon counts them. */
const count = computed(() => [...draft.value].length);

/** Whether there is a letter or a digit: emojis and signs alone are nothing to speak. */
const hasWords = computed(() => /[\p{L}\p{N}]/u.test(draft.value));

function send() {
  const text = draft.value.trim();
  if (!hasWords.value || count.value > most.value) return;
  // Clicked again while a slow connection takes it: once is enough.
  if (take.value?.state === "sending" && take.value.text === text) return;
  speak(text, chosen());
}

/** Set by the page: takes a text that is too long for once. */
export const onLong = { then: () => {} };

export function write(text) {
  draft.value = text;
  keep("draft", text);
}

export function Speak() {
  const area = useRef(null);
  useEffect(() => {
    if (matchMedia("(min-width: 768px)").matches) area.current?.focus({ preventScroll: true });
  }, []);
  const over = count.value - most.value;
  const making = isMaking();
  const recent = jobs.value?.slice(0, 3) ?? [];
  return html`<div class="speak">
    <h1 class="spoken">${t("input_label")}</h1>
    <div class="composer card">
      <textarea id="text" ref=${area} aria-label=${t("input_label")} placeholder=${t("input_placeholder")} dir="auto"
        aria-describedby="counter" aria-invalid=${over > 0} value=${draft.value} spellcheck="true"
        onInput=${(event) => write(event.target.value)}
        onKeyDown=${(event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && (event.preventDefault(), event.repeat || send())}></textarea>
      ${!draft.value && html`<div class="examples">
        <p id="examples-label">${t("examples")}</p>
        <ul aria-labelledby="examples-label">${EXAMPLES[language.value].map((text) => html`<li key=${text}>
          <button type="button" onClick=${() => { write(text); area.current?.focus(); }}>${text}</button></li>`)}</ul>
      </div>`}
      <div class="composer-foot">
        <p id="counter" class=${`counter ${over > 0 ? "over" : ""}`}>
          ${over > 0 ? t("too_long", { count: number(over) }) : draft.value.trim() && !hasWords.value ? t("no_words") : t("characters", { count: number(count.value), most: number(most.value) })}
        </p>
        ${over > 0 && html`<button type="button" class="small" onClick=${() => onLong.then(draft.value)}>${t("split")}</button>`}
        ${draft.value && html`<button type="button" class="quiet" onClick=${() => { write(""); area.current?.focus(); }}>${t("clear")}</button>`}
        <kbd class="shortcut" aria-hidden="true">${t("speak_shortcut")}</kbd>
        <button type="button" class="primary speak-button" disabled=${!hasWords.value || over > 0}
          onClick=${(event) => event.detail > 1 || send()}
          title=${t("speak_shortcut")}>
          ${making ? html`<span class="spinner"></span>` : html`<${Icon} name="play" />`}${t("speak")}
        </button>
      </div>
    </div>
    <${Settings} />
    ${recent.length > 0 && html`<section class="recent" aria-labelledby="recent-title">
      <header><h2 id="recent-title">${t("recent")}</h2><a href="#history">${t("see_all")}</a></header>
      <${JobList} jobs=${recent} /></section>`}
  </div>`;
}

function Settings() {
  const slider = useRef(null);
  // The part that is filled. (The policy forbids style attributes, and admits scripts that set a style.)
  useEffect(() => {
    const { least, most } = SPEEDS;
    slider.current?.style.setProperty("--part", `${(100 * (settings.value.speed - least)) / (most - least)}%`);
  });
  const { format, speed, seed, priority } = settings.value;
  const { formats = [], priorities = [], daemon } = session.value ?? {};
  const playable = formats.filter((name) => name !== "pcm");
  return html`<aside class="settings card" aria-label=${t("settings")}>
    <${VoicePicker} value=${settings.value.voice} onChange=${(voice) => change({ voice })} />
    <div class="pair">
      <${Field} id="format" label=${t("format")}>
        <select id="format" value=${format} onChange=${(event) => change({ format: event.target.value })}>
          ${playable.map((name) => html`<option key=${name} value=${name}>${name.toUpperCase()}</option>`)}
        </select><//>
      ${priorities.length > 1 && html`<${Field} id="priority" label=${t("priority")}>
        <select id="priority" value=${priority} onChange=${(event) => change({ priority: event.target.value })}>
          ${["vip", "interactive", "batch"].filter((name) => priorities.includes(name)).map((name) => html`<option key=${name} value=${name}>${t(`priority_${name}`)}</option>`)}
        </select><//>`}
    </div>
    ${daemon?.features?.includes("speed") && html`<div class="field">
      <div class="label-row"><label for="speed">${t("speed")}</label><output for="speed">${speed.toFixed(2)}×</output></div>
      <input id="speed" type="range" ref=${slider} min=${SPEEDS.least} max=${SPEEDS.most} step=${SPEEDS.step} value=${speed}
        onInput=${(event) => change({ speed: Number(event.target.value) })} />
    </div>`}
    <${Field} id="seed" label=${t("seed")} hint=${t("seed_hint")}>
      <input id="seed" type="number" inputmode="numeric" min="0" max="4294967295" step="1" placeholder=${t("seed_random")}
        aria-describedby="seed-hint" value=${seed ?? ""}
        onInput=${(event) => change({ seed: event.target.value === "" ? null : Math.max(0, Math.floor(Number(event.target.value))) })} /><//>
  </aside>`;
}
