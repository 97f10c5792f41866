// The view of the voices: one's own, those of the service, and the making of a new one.
import { useEffect, useRef } from "./vendor/hooks.js";
import { signal } from "./vendor/signals.js";
import { ApiError, ask, session } from "./api.js";
import * as player from "./player.js";
import { MOST_S, Recorder, decoded, toBase64, whyNoMicrophone } from "./recorder.js";
import { change, settings } from "./speak.js";
import { clock, span, t } from "./texts.js";
import { Dialog, Field, Icon, html, wordsFor } from "./ui.js";
import { Face, PreviewButton, forgetSample, matching, nameOf, once, readVoices, voices } from "./voicepicker.js";

const LEAST_NAMED = 12;

/** The voice that is being made: {recorder, take: {blob, seconds, name}, name, text, consent, problems, busy, saved} */
const BLANK = { recorder: null, take: null, name: "", text: "", consent: false, problems: {}, busy: false, saved: "" };
const making = signal(BLANK);
const wanted = signal("");
const removing = signal(null);

function edit(values) {
  making.value = { ...making.value, ...values };
}

export function Voices() {
  const list = voices.value ?? [];
  const own = list.filter((voice) => voice.owner === "own");
  const shared = matching(list, wanted.value).filter((voice) => voice.owner !== "own");
  const clones = session.value?.daemon?.clones_voices;
  return html`<section class="view" aria-labelledby="voices-title">
    <header class="view-head"><h1 id="voices-title">${t("voices")}</h1></header>
    <div class="groups">
      ${clones ? html`<${Maker} />` : session.value?.daemon && html`<p class="card note">${t("clone_unavailable")}</p>`}
      ${clones && html`<div class="group"><h2>${t("own_voices")}</h2>
        ${own.length ? html`<ul class="cards">${own.map((voice) => html`<${Card} key=${voice.id} voice=${voice} />`)}</ul>`
          : html`<p class="hint">${t("own_voices_empty")}</p>`}</div>`}
      <div class="group"><h2>${t("shared_voices")}</h2>
        ${(list.length > LEAST_NAMED) && html`<div class="search card"><${Icon} name="search" />
          <input type="search" aria-label=${t("search_voices")} placeholder=${t("search_voices")} value=${wanted.value}
            onInput=${(event) => { wanted.value = event.target.value; }} /></div>`}
        <ul class="cards">${shared.map((voice) => html`<${Card} key=${voice.id} voice=${voice} />`)}</ul>
        ${voices.value && !shared.length && html`<p class="hint">${t("no_matches")}</p>`}</div>
    </div>
    <${Removal} />
  </section>`;
}

function Card({ voice }) {
  const used = !once.value && voice.id === nameOf(settings.value.voice);
  return html`<li class=${`voice-card card ${used ? "used" : ""}`}>
    <${Face} name=${voice.name} />
    <span class="picker-words"><span>${voice.name}</span><small>${[voice.language, voice.description].filter(Boolean).join(" · ")}</small></span>
    <${PreviewButton} voice=${voice} />
    ${used ? html`<span class="icon-button" title=${t("use_voice")}><${Icon} name="check" /></span>`
      : html`<button type="button" class="small" onClick=${() => use(voice.id)} aria-label=${`${t("use_voice")}: ${voice.name}`}>${t("use_voice")}</button>`}
    ${voice.owner === "own" && html`<button type="button" class="icon-button" aria-label=${t("delete_voice", { name: voice.name })}
      title=${t("delete_voice", { name: voice.name })} onClick=${() => { removing.value = voice; }}><${Icon} name="remove" /></button>`}
  </li>`;
}

function use(id) {
  once.value = null;
  change({ voice: id });
}

function Removal() {
  const voice = removing.value;
  const close = () => { removing.value = null; };
  const remove = async () => {
    close();
    try {
      await ask("DELETE", `v1/audio/voices/${encodeURIComponent(voice.id)}`);
      forgetSample(voice.id);
      if (settings.value.voice === voice.id) change({ voice: "" });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      edit({ problems: { form: wordsFor(error) } });
    }
    readVoices();
  };
  return html`<${Dialog} open=${Boolean(voice)} onClose=${close} label=${t("delete")}>
    <div class="maker"><p>${t("delete_sure", { name: voice?.name })}</p>
      <div class="actions"><button type="button" class="small danger" onClick=${remove}>${t("delete")}</button>
        <button type="button" class="small" onClick=${close}>${t("cancel")}</button></div></div><//>`;
}

// --- a new voice

function limits() {
  const { recording_min_s: least = 1, recording_max_s: most = MOST_S } = session.value?.daemon ?? {};
  return { least, most: Math.min(most, MOST_S) };
}

async function take(blob, name, recorded = false) {
  const { least, most } = limits();
  edit({ recorder: null, busy: true, problems: {}, saved: "" });
  try {
    const found = await decoded(blob, most);
    let problem = "";
    if (found.seconds < least) problem = t("error_recording_short", { time: `${found.seconds.toFixed(1)} s`, least: span(least) });
    else if (found.silent) problem = t("error_recording_silent");
    const note = found.cut ? t("error_recording_long", { time: clock(found.cut), most: span(most) }) : "";
    edit({ busy: false, take: problem ? null : { ...found, name, note, recorded }, problems: { take: problem } });
  } catch {
    edit({ busy: false, take: null, problems: { take: t("error_audio_file", { name }) } });
  }
}

async function record() {
  edit({ problems: {}, saved: "", take: null });
  player.clear();
  try {
    edit({ recorder: await Recorder.start((blob) => take(blob, t("your_recording"), true)) });
  } catch (key) {
    edit({ problems: { take: typeof key === "string" ? t(key) : t("microphone_denied") } });
  }
}

function problemsOf({ name, text, consent }, saved) {
  const problems = {};
  if (saved && !name.trim()) problems.name = t("voice_name_needed");
  if (!text.trim()) problems.text = t("transcript_needed");
  if (!consent) problems.consent = t("consent_needed");
  return problems;
}

function focusFirst(problems) {
  const [id] = [["text", "voice-text"], ["name", "voice-name-new"], ["consent", "consent"]].filter(([key]) => key in problems).map(([, one]) => one);
  document.getElementById(id)?.focus();
}

async function save(event) {
  event.preventDefault();
  if (making.value.busy) return;
  const { take: recording, name, text } = making.value;
  const problems = problemsOf(making.value, true);
  edit({ problems });
  if (Object.keys(problems).length) {
    focusFirst(problems);
    return;
  }
  const form = new FormData();
  form.set("name", name.trim());
  form.set("ref_text", text.trim());
  form.set("consent", "true");
  form.set("audio_sample", recording.blob, "recording.wav");
  edit({ busy: true });
  try {
    const made = await (await ask("POST", "v1/audio/voices", { body: form })).json();
    making.value = { ...BLANK, saved: made.name };
    forgetSample(made.id ?? made.name);
    use(made.id ?? made.name);
    readVoices();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const place = { name: "name", ref_text: "text", audio_sample: "take", consent: "consent" }[error.param] ?? "form";
    edit({ busy: false, problems: { [place]: wordsFor(error) } });
  }
}

async function useOnce() {
  const problems = problemsOf(making.value, false);
  edit({ problems });
  if (Object.keys(problems).length) {
    focusFirst(problems);
    return;
  }
  once.value = { audio: await toBase64(making.value.take.blob), text: making.value.text.trim() };
  making.value = BLANK;
  location.hash = "speak";
}

function Maker() {
  const { recorder, take: recording, name, text, consent, problems, busy, saved } = making.value;
  useEffect(() => () => {
    making.value.recorder?.discard();
    edit({ recorder: null });
  }, []);
  return html`<form class="card maker" onSubmit=${save} aria-labelledby="maker-title" noValidate>
    <div><h2 id="maker-title">${t("add_voice")}</h2><p class="hint">${t("add_voice_hint")}</p></div>
    ${saved && html`<p class="success" role="status">${t("saved_voice", { name: saved })}</p>`}
    ${!recording && html`<p class="read-aloud"><small>${t("read_this")}</small>${t("read_this_text")}</p>`}
    ${recorder ? html`<${Meter} recorder=${recorder} />` : recording ? html`<${Recorded} recording=${recording} />` : html`<${Sources} busy=${busy} />`}
    ${problems.take && html`<p class="problem" role="alert">${problems.take}</p>`}
    ${recording && html`
      <${Field} id="voice-text" label=${t("transcript")} hint=${t("transcript_hint")} error=${problems.text}>
        <textarea id="voice-text" rows="3" aria-describedby="voice-text-hint" aria-invalid=${Boolean(problems.text)} value=${text} onInput=${(event) => edit({ text: event.target.value })}></textarea>
        ${recording.recorded && !text && html`<button type="button" class="quiet suggested" onClick=${() => edit({ text: t("read_this_text") })}>${t("as_suggested")}</button>`}<//>
      <${Field} id="voice-name-new" label=${t("name")} error=${problems.name}>
        <input id="voice-name-new" autocomplete="off" spellcheck="false" placeholder=${t("name_placeholder")} aria-invalid=${Boolean(problems.name)} value=${name}
          onInput=${(event) => edit({ name: event.target.value })} /><//>
      <div><label class="check"><input type="checkbox" id="consent" checked=${consent} onChange=${(event) => edit({ consent: event.target.checked })} />
        <span>${t("consent")}</span></label>${problems.consent && html`<p class="problem" role="alert">${problems.consent}</p>`}</div>
      ${problems.form && html`<p class="problem" role="alert">${problems.form}</p>`}
      <div class="actions">
        <button type="submit" class="primary" disabled=${busy}>${busy && html`<span class="spinner"></span>`}${t("save_voice")}</button>
        <button type="button" class="small" onClick=${useOnce}>${t("use_once")}</button>
      </div>`}
    ${!recording && problems.form && html`<p class="problem" role="alert">${problems.form}</p>`}
  </form>`;
}

function Sources({ busy }) {
  const why = whyNoMicrophone();
  const { least, most } = limits();
  return html`<div class="sources">
      ${!why && html`<button type="button" class="primary record" disabled=${busy} onClick=${record}><${Icon} name="record" />${t("record")}</button>
        <span class="hint">${t("or")}</span>`}
      <label class="button file-button"><${Icon} name="upload" />${t("upload")}
        <input type="file" accept="audio/*,video/webm,video/mp4,.m4a,.flac,.ogg,.opus" disabled=${busy}
          onChange=${(event) => { const [file] = event.target.files; if (file) take(file, file.name); event.target.value = ""; }} /></label>
      ${busy && html`<span class="spinner"></span>`}
    </div>
    <p class="hint">${why ? t(why) : t("upload_hint", { least: span(least), most: span(most) })}</p>`;
}

function Meter({ recorder }) {
  const canvas = useRef(null);
  const words = useRef(null);
  useEffect(() => {
    const levels = [];
    let next;
    const show = () => {
      if (!canvas.current) return;
      levels.push(recorder.level);
      drawLevels(canvas.current, levels);
      words.current.textContent = `${clock(recorder.seconds)} / ${clock(MOST_S)}`;
      next = requestAnimationFrame(show);
    };
    show();
    return () => cancelAnimationFrame(next);
  }, [recorder]);
  return html`<div class="meter">
    <button type="button" class="primary record" onClick=${() => recorder.stop()}><${Icon} name="stop" />${t("record_stop")}</button>
    <canvas ref=${canvas} role="img" aria-label=${t("recording")}></canvas><span class="time" ref=${words}></span></div>`;
}

function drawLevels(canvas, levels) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.fillStyle = getComputedStyle(canvas).getPropertyValue("--bad");
  const bars = Math.floor(width / 4);
  const last = levels.slice(-bars);
  last.forEach((level, index) => {
    const tall = Math.max(2, Math.min(1, Math.sqrt(level)) * height);
    pen.beginPath();
    pen.roundRect((bars - last.length + index) * 4, (height - tall) / 2, 2, tall, 1);
    pen.fill();
  });
}

function Recorded({ recording }) {
  return html`<div class="recorded">
    <button type="button" class="play small" aria-label=${t("play")} onClick=${() => player.playBlob(recording.blob, recording.name)}><${Icon} name="play" /></button>
    <p dir="auto" title=${recording.name}>${recording.name}</p><small>${clock(recording.seconds)}</small>
    <button type="button" class="quiet" onClick=${() => { player.clear(); edit({ take: null, problems: {} }); }}>${t("record_again")}</button>
  </div>
  ${recording.note && html`<p class="hint">${recording.note}</p>`}`;
}
