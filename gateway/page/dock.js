// The player at the foot of the page, with the state of the take that is being made.
import { useEffect, useRef } from "./vendor/hooks.js";
import { useComputed } from "./vendor/signals.js";
import * as player from "./player.js";
import { cancel, remembered, speak, take, tryNow } from "./takes.js";
import { clock, span, t, tn } from "./texts.js";
import { Icon, IconButton, html, now, wordsFor } from "./ui.js";
import { nameOf } from "./voicepicker.js";

const MAKING = new Set(["sending", "refused", "waiting", "speaking", "reconnecting"]);

export function isMaking() {
  return MAKING.has(take.value?.state);
}

/** One line on the take. `at`: the time that count-downs are reckoned from. */
function status(current, at = now.value) {
  switch (current?.state) {
    case "sending":
      return t("preparing");
    case "refused": {
      const time = span((current.retryAt - at) / 1000);
      if (current.error.code === "rate_limited") return t("refused_rate", { time });
      if (current.error.code === "queue_full") return t("refused_full", { time });
      return t(current.error.code === "offline" ? "away_gateway" : "away_daemon");
    }
    case "waiting":
      if (!current.position) return t("waiting_next");
      if (!current.wait) return t("ahead_unknown", { count: current.position });
      return tn("ahead", current.position, { time: span(current.wait) });
    case "speaking":
      return current.segments > 1
        ? `${t("speaking")} · ${t("segment_of", { segment: Math.min(current.segment + 1, current.segments), segments: current.segments })}`
        : `${t("speaking")}…`;
    case "reconnecting":
      return t("reconnecting");
    case "failed":
      return wordsFor(current.error);
    case "cancelled":
      return t("was_cancelled");
    default:
      return "";
  }
}

/** The voice and the format of what is played; its length is beside the waves. */
function facts(track) {
  const { voice, format } = remembered.value[track?.id] ?? {};
  return format ? [voice || nameOf(""), format.toUpperCase()].join(" · ") : player.duration.value ? t("audio_length", { time: clock(player.duration.value) }) : "";
}

export function Dock() {
  const current = take.value;
  const track = player.track.value;
  const making = isMaking();
  const isTake = current && (!track || track.id === null || track.id === current.id);
  const line = isTake ? status(current) : "";
  const hasAudio = player.hasAudio.value;
  const failed = isTake && ["failed", "cancelled"].includes(current.state);
  const shown = track || (current && current.state !== "done");
  if (!shown) return html`<div class="dock-none" role="status" aria-live="polite"></div>`;
  const title = track?.title ?? current?.text ?? "";
  const state = failed ? "failed" : making && isTake ? current.state : "done";
  // Words have the place of the waves while there are none.
  const wordy = failed || (making && isTake && !hasAudio);
  return html`<section class=${`dock ${state} ${wordy ? "wordy" : ""}`} aria-label=${t("now_playing")}>
    <div class="dock-inside">
      ${failed
        ? html`<span class="dock-mark"><${Icon} name="warn" /></span>`
        : html`<button type="button" class="play" disabled=${!hasAudio} onClick=${player.toggle}
            aria-label=${t(player.playing.value ? "pause" : "play")} title=${t(player.playing.value ? "pause" : "play")}>
            ${making && isTake && !hasAudio ? html`<span class="spinner"></span>` : html`<${Icon} name=${player.playing.value ? "pause" : "play"} />`}
          </button>`}
      <div class="dock-words">
        <p class="dock-title" dir="auto" title=${title.slice(0, 500)}>${title.slice(0, 200)}</p>
        <p class="dock-status" role="status" aria-live="polite" data-state=${current?.state}>${line && state === "refused"
          ? html`<span aria-hidden="true">${line}</span><span class="spoken">${status(current, current.retryAt - current.waitMs)}</span>` : line
          || (player.broken.value ? t("error_play") : facts(track))}</p>
      </div>
      ${!wordy && html`<${Waves} making=${making && isTake} />`}
      <div class="dock-actions">
        ${isTake && current.state === "refused" && html`<button type="button" class="small" onClick=${tryNow}>${t("send_now")}</button>`}
        ${failed && html`<button type="button" class="small" onClick=${() => speak(current.text, current.settings)}>${t("try_again")}</button>`}
        ${track?.url && track.name && html`<a class="icon-button" href=${track.url} download=${track.name}
          aria-label=${t("download")} title=${t("download")}><${Icon} name="download" /></a>`}
        ${making && isTake
          ? html`<${IconButton} icon="close" label=${t("cancel")} onClick=${cancel} />`
          : html`<${IconButton} icon="close" label=${t("close")} onClick=${() => { player.clear(); if (isTake) take.value = null; }} />`}
      </div>
      ${making && isTake && current.segments > 1 && html`<${Segments} ...${current} />`}
    </div>
  </section>`;
}

function Segments({ segment, segments }) {
  const shown = Math.min(segments, 60);
  const done = Math.round((segment / segments) * shown);
  return html`<div class="segments" role="progressbar" aria-label=${t("speaking")} aria-valuemin="0"
    aria-valuemax=${segments} aria-valuenow=${segment}>
    ${Array.from({ length: shown }, (_, index) => html`<span key=${index}
      class=${index < done ? "made" : index === done ? "next" : ""}></span>`)}
  </div>`;
}

/** The waves of the audio, and a slider over them for seeking. */
function Waves({ making }) {
  const canvas = useRef(null);
  const { segment = 0, segments = 0 } = (making && take.value) || {};
  // While it is made, the picture is as long as the whole is expected to be.
  const part = useComputed(() => {
    const current = take.value;
    if (!player.growing.value || !current?.segments) return 1;
    return Math.min(1, Math.max(0.02, Math.max(1, current.segment) / current.segments));
  });
  useEffect(() => {
    draw(canvas.current, player.peaks.value, player.growing.value ? part.value : 1, ratio());
  }, [player.peaks.value, player.time.value, player.duration.value, player.growing.value, segment, segments]);
  useEffect(() => {
    const redraw = () => canvas.current && draw(canvas.current, player.peaks.value, player.growing.value ? part.value : 1, ratio());
    addEventListener("resize", redraw);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", redraw);
    return () => {
      removeEventListener("resize", redraw);
      dark.removeEventListener("change", redraw);
    };
  }, []);
  return html`<div class=${`waves ${player.buffering.value ? "starved" : ""}`}>
    <canvas ref=${canvas} aria-hidden="true"></canvas>
    <input type="range" min="0" max=${Math.max(0.01, player.duration.value).toFixed(2)} step="0.01" value=${player.time.value}
      disabled=${!player.duration.value} aria-label=${t("playing_position")}
      aria-valuetext=${`${clock(player.time.value)} / ${clock(player.duration.value)}`}
      onInput=${(event) => player.seek(Number(event.target.value))} />
    <span class="time" aria-hidden="true">${clock(player.time.value)}<i> / ${clock(player.duration.value)}</i></span>
  </div>`;
}

function ratio() {
  return player.duration.value ? player.time.value / player.duration.value : 0;
}

function draw(canvas, peaks, part, heard) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const [ink, accent] = [style.getPropertyValue("--wave"), style.getPropertyValue("--accent")];
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const step = 4;
  const bars = Math.floor(width / step);
  const filled = peaks.length ? Math.max(1, Math.round(bars * part)) : 0;
  const loudest = Math.max(0.05, ...sampled(peaks, 2000));
  for (let bar = 0; bar < bars; bar++) {
    let level = 0;
    if (bar < filled) {
      const from = Math.floor((bar / filled) * peaks.length);
      const to = Math.max(from + 1, Math.floor(((bar + 1) / filled) * peaks.length));
      for (let index = from; index < to; index++) level = Math.max(level, peaks[index] ?? 0);
    }
    const tall = Math.max(2, (level / loudest) * (height - 4));
    pen.fillStyle = bar < filled && bar / filled < heard ? accent : ink;
    pen.globalAlpha = bar < filled ? 1 : 0.35;
    pen.beginPath();
    pen.roundRect(bar * step, (height - tall) / 2, 2, tall, 1);
    pen.fill();
  }
  pen.globalAlpha = 1;
}

function sampled(values, most) {
  if (values.length <= most) return values;
  const step = values.length / most;
  return Array.from({ length: most }, (_, index) => values[Math.floor(index * step)]);
}
