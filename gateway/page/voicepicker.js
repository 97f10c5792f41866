// Voices: the list of them, and a picker with search and preview.
import { useState } from "./vendor/hooks.js";
import { signal } from "./vendor/signals.js";
import { ApiError, ask, askJson, session } from "./api.js";
import * as player from "./player.js";
import { language, t } from "./texts.js";
import { Dialog, Icon, IconButton, html } from "./ui.js";

/** Null before they are read. */
export const voices = signal(null);
/** A recording to clone without saving it: {audio (base64), text}. */
export const once = signal(null);

const SENTENCE = { en: "Hello! This is how I sound.", zh: "你好！这就是我的声音。" };

export async function readVoices() {
  try {
    const list = (await askJson("GET", "v1/audio/voices")).voices;
    // One's own come first.
    voices.value = list.sort((one, other) => (other.owner === "own") - (one.owner === "own"));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
}

export function nameOf(name) {
  return name || session.value?.daemon?.default_voice || t("default_voice");
}

/** What was heard of a voice, by its id and then by the language of the page. */
const samples = new Map();
export const previewing = signal(null);

/** Play a voice's recording; a voice without one says a sentence. */
export async function preview(voice) {
  previewing.value = voice.id;
  try {
    const wanted = language.value;
    const heard = samples.get(voice.id) ?? {};
    samples.set(voice.id, heard);
    heard[wanted] ??= await recordingOf(voice) ?? await sentenceOf(voice);
    player.playBlob(heard[wanted], voice.name);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  } finally {
    previewing.value = null;
  }
}

/** To be called for a voice that is made or deleted: another may have had its name, or will. */
export function forgetSample(id) {
  samples.delete(id);
}

async function recordingOf(voice) {
  if (voice.sample === false) return null;
  try {
    return await (await ask("GET", `v1/audio/voices/${encodeURIComponent(voice.id)}/sample`)).blob();
  } catch (error) {
    if (error instanceof ApiError && !error.retryable) return null;
    throw error;
  }
}

async function sentenceOf(voice) {
  const wanted = (voice.language || language.value).startsWith("zh") ? "zh" : language.value;
  const json = { input: SENTENCE[wanted], voice: voice.id, response_format: "wav" };
  return (await ask("POST", "v1/audio/speech", { json })).blob();
}

/** Those that have these letters in their name, language or description. */
export function matching(list, letters) {
  const words = letters.trim().toLowerCase();
  return list.filter((voice) => `${voice.name} ${voice.language} ${voice.description}`.toLowerCase().includes(words));
}

export function VoicePicker({ value, onChange }) {
  const [open, setOpen] = useState(false);
  const [wanted, setWanted] = useState("");
  const list = voices.value ?? [];
  const name = once.value ? t("using_once") : nameOf(value);
  const current = list.find((voice) => voice.id === nameOf(value));
  const found = matching(list, wanted);
  const choose = (id) => {
    once.value = null;
    onChange(id);
    setOpen(false);
  };
  return html`<div class="field">
    <span class="label" id="voice-label">${t("voice")}</span>
    <button type="button" class="picker" aria-haspopup="dialog" aria-labelledby="voice-label voice-chosen"
      onClick=${() => { setWanted(""); setOpen(true); }}>
      <${Face} name=${name} />
      <span class="picker-words" id="voice-chosen"><span>${name}</span>
        ${current?.description && !once.value && html`<small>${current.description}</small>`}</span>
      <${Icon} name="down" />
    </button>
    <${Dialog} open=${open} onClose=${() => setOpen(false)} label=${t("voice")} class="voice-dialog">
      <div class="search"><${Icon} name="search" />
        <input type="search" aria-label=${t("search_voices")} placeholder=${t("search_voices")} value=${wanted} autofocus
          onInput=${(event) => setWanted(event.target.value)}
          onKeyDown=${(event) => {
            // What is in the field now, which may not be shown yet.
            const [first] = event.target.value.trim() ? matching(list, event.target.value) : [];
            if (event.key === "Enter" && first) choose(first.id);
          }} />
        <${IconButton} icon="close" label=${t("close")} onClick=${() => setOpen(false)} /></div>
      <ul class="voice-list">
        ${once.value && html`<li class="voice-row chosen"><button type="button" class="voice-choose" onClick=${() => setOpen(false)}>
          <${Face} name="●" /><span class="picker-words"><span>${t("using_once")}</span></span><${Icon} name="check" /></button></li>`}
        ${found.slice(0, 200).map((voice) => html`<${VoiceRow} key=${voice.id} voice=${voice}
          chosen=${!once.value && voice.id === nameOf(value)} onChoose=${() => choose(voice.id)} />`)}
        ${voices.value && !found.length && html`<li class="hint">${t("no_matches")}</li>`}
      </ul>
    <//>
  </div>`;
}

function VoiceRow({ voice, chosen, onChoose }) {
  return html`<li class=${`voice-row ${chosen ? "chosen" : ""}`}>
    <button type="button" class="voice-choose" aria-pressed=${chosen} onClick=${onChoose}>
      <${Face} name=${voice.name} />
      <span class="picker-words"><span>${voice.name}${voice.owner === "own" && html` <em class="tag">${t("own_voice")}</em>`}</span>
        <small>${[voice.language, voice.description].filter(Boolean).join(" · ")}</small></span>
      ${chosen && html`<${Icon} name="check" />`}
    </button>
    <${PreviewButton} voice=${voice} />
  </li>`;
}

export function PreviewButton({ voice }) {
  return html`<button type="button" class="icon-button" aria-label=${t("listen", { name: voice.name })} title=${t("listen", { name: voice.name })}
    onClick=${() => preview(voice)}>
    ${previewing.value === voice.id ? html`<span class="spinner"></span>` : html`<${Icon} name="play" />`}</button>`;
}

const HUES = 8;

/** A coloured mark with the first letter of a name, which is no text. */
export function Face({ name }) {
  let sum = 7;
  for (const character of name) sum = (sum * 131 + character.codePointAt(0)) % 65521;
  return html`<span class=${`face hue-${sum % HUES}`} aria-hidden="true" data-letter=${[...name][0]?.toUpperCase() ?? ""}></span>`;
}
