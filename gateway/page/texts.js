// Words in the visitor's language: en.json and zh.json, which have the same keys.
import { signal } from "./vendor/signals.js";
import { keep, kept } from "./kept.js";

const LANGUAGES = ["en", "zh"];
const words = signal({});

export const language = signal("en");

/** The words for `key`; `values` fill its {places}. */
export function t(key, values = {}) {
  const text = words.value[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
}

export const has = (key) => key in words.value;

/** The words for a number of things: `key_one` where there is one. */
export function tn(key, count, values = {}) {
  const one = `${key}_one`;
  return t(count === 1 && one in words.value ? one : key, { count: number(count), ...values });
}

export function number(value) {
  return new Intl.NumberFormat(language.value).format(value);
}

/** A stretch of time in words: "8 s", "2 min". */
export function span(seconds) {
  const zh = language.value === "zh";
  if (seconds < 90) return zh ? `${Math.max(1, Math.ceil(seconds))} 秒` : `${Math.max(1, Math.ceil(seconds))} s`;
  return zh ? `${Math.round(seconds / 60)} 分钟` : `${Math.round(seconds / 60)} min`;
}

/** A place in a recording: 1:07. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(Number.isFinite(seconds) ? seconds : 0));
  const minutes = Math.floor(whole / 60) % 60;
  const hours = Math.floor(whole / 3600);
  const rest = `${String(minutes).padStart(hours ? 2 : 1, "0")}:${String(whole % 60).padStart(2, "0")}`;
  return hours ? `${hours}:${rest}` : rest;
}

/** Throws without a connection. */
export async function speakLanguage(wanted) {
  const answer = await fetch(new URL(`${wanted}.json`, import.meta.url));
  if (!answer.ok) throw new TypeError(`${wanted}.json: ${answer.status}`);
  words.value = await answer.json();
  language.value = wanted;
  document.documentElement.lang = wanted === "zh" ? "zh-CN" : "en";
}

export async function switchLanguage() {
  const other = language.value === "zh" ? "en" : "zh";
  try {
    await speakLanguage(other);
    keep("language", other);
  } catch {
    // Without a connection, which the page shows, it stays as it is.
  }
}

/** The language that the visitor chose, or else the browser's. */
export function firstLanguage() {
  const chosen = kept("language", null);
  if (LANGUAGES.includes(chosen)) return chosen;
  for (const tag of navigator.languages ?? [navigator.language]) {
    const found = LANGUAGES.find((name) => tag.toLowerCase().startsWith(name));
    if (found) return found;
  }
  return "en";
}
