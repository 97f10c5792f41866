// The one player of the page: of audio that is being made (live.js), and of files, which the audio element seeks in.
import { batch, computed, signal } from "./vendor/signals.js";
import { Live } from "./live.js";

/** What is in the player: {id, title, url, name}; url is null while it is made. */
export const track = signal(null);
export const playing = signal(false);
export const time = signal(0);
export const duration = signal(0);
export const buffering = signal(false);
export const broken = signal(false);
/** The loudest sample of each 40 ms, 0..1. */
export const peaks = signal([]);
/** Whether more is coming. */
export const growing = signal(false);

export const hasAudio = computed(() => duration.value > 0 || Boolean(track.value?.url));

const PEAK_S = 0.04;
/** Files above this size are played from the network, without a picture of their waves. */
const MOST_PICTURED = 40 << 20;

const element = new Audio();
element.preload = "metadata";
let live = null;
let pictured = [];
let objectUrl = null;

// --- audio that is being made

/** Begin with audio that is not there yet. To be called in a click. */
export function begin(title, rate) {
  clear();
  live = new Live(rate);
  live.onend = () => swap(live.duration, false);
  batch(() => {
    track.value = { id: null, title, url: null, name: null };
    growing.value = true;
    playing.value = true;
  });
  frame();
  return live;
}

/** Add samples to what `begin` returned. */
export function feed(target, samples) {
  if (target !== live) return;
  live.push(samples);
  const size = Math.round(PEAK_S * live.rate);
  for (let at = 0; at < samples.length; at += size) {
    let most = 0;
    const end = Math.min(samples.length, at + size);
    for (let index = at; index < end; index++) most = Math.max(most, Math.abs(samples[index]));
    pictured.push(most);
  }
  batch(() => {
    peaks.value = [...pictured];
    duration.value = live.duration;
  });
}

/** All of it is there, and the file too. `whole`: what was fed is the whole. */
export function complete(target, file, whole) {
  if (target !== live) return;
  growing.value = false;
  track.value = { ...track.value, ...file };
  if (file.url.startsWith("blob:")) objectUrl = file.url;
  if (whole && live.made) {
    live.finish();
    return;
  }
  // The rest was made while there was no connection.
  const at = live.made ? live.time : 0;
  const wanted = playing.value;
  duration.value = Math.max(duration.value, file.seconds ?? 0);
  picture(file.url);
  swap(at, wanted);
}

/** The audio that is being made will not be finished. */
export function giveUp(target) {
  if (target === live) clear();
}

/** Go on with the file in place of the samples. */
function swap(at, wanted) {
  const url = track.value?.url;
  live?.close();
  live = null;
  if (!url) return;
  element.src = url;
  element.currentTime = at;
  playing.value = false;
  time.value = at;
  if (wanted) start();
}

// --- files

/** Play a file: {id, title, url, name, seconds}. */
export async function play(file) {
  clear();
  batch(() => {
    track.value = file;
    duration.value = file.seconds ?? 0;
  });
  element.src = file.url;
  picture(file.url);
  start();
}

/** Have a file at hand, if the player has nothing else. */
export function offer(file) {
  if (track.value) return;
  batch(() => {
    track.value = file;
    duration.value = file.seconds ?? 0;
  });
  element.src = file.url;
  picture(file.url);
}

/** Fetch the file, or take its bytes, and show its waves. */
async function picture(url, blob = null) {
  try {
    // (The policy admits no connection to blob: addresses.)
    const source = blob ?? await fetch(url, { credentials: "same-origin" });
    if (source.ok === false || (blob?.size ?? Number(source.headers.get("content-length"))) > MOST_PICTURED) return;
    const audio = await new OfflineAudioContext(1, 1, 24000).decodeAudioData(await source.arrayBuffer());
    if (track.value?.url !== url) return;
    const samples = audio.getChannelData(0);
    const size = Math.round(PEAK_S * audio.sampleRate);
    const found = [];
    for (let at = 0; at < samples.length; at += size) {
      let most = 0;
      const end = Math.min(samples.length, at + size);
      for (let index = at; index < end; index += 2) most = Math.max(most, Math.abs(samples[index]));
      found.push(most);
    }
    batch(() => {
      peaks.value = found;
      duration.value = audio.duration;
    });
  } catch {
    // The player works without a picture.
  }
}

function start() {
  broken.value = false;
  playing.value = true;
  element.play().catch((error) => {
    playing.value = false;
    broken.value = error.name === "NotSupportedError";
  });
  frame();
}

// --- what its buttons do

export function toggle() {
  if (!track.value) return;
  if (playing.value) {
    playing.value = false;
    if (live) live.pause();
    else element.pause();
  } else if (live) {
    playing.value = true;
    live.resume();
    frame();
  } else if (track.value.url) {
    if (duration.value && element.currentTime >= duration.value - 0.05) element.currentTime = 0;
    start();
  }
}

export function seek(seconds) {
  time.value = seconds;
  if (live) live.seek(seconds);
  else element.currentTime = seconds;
}

export function clear() {
  live?.close();
  live = null;
  element.pause();
  element.removeAttribute("src");
  if (objectUrl) URL.revokeObjectURL(objectUrl);
  objectUrl = null;
  pictured = [];
  batch(() => {
    track.value = null;
    peaks.value = [];
    playing.value = growing.value = buffering.value = broken.value = false;
    time.value = duration.value = 0;
  });
}

/** Play bytes that are in this page. */
export function playBlob(blob, title) {
  clear();
  objectUrl = URL.createObjectURL(blob);
  const url = objectUrl;
  track.value = { id: null, title, url, name: null };
  element.src = url;
  picture(url, blob);
  start();
}

element.addEventListener("ended", () => batch(() => {
  playing.value = false;
  time.value = duration.value;
}));
element.addEventListener("pause", () => {
  if (!live) playing.value = false;
});
element.addEventListener("durationchange", () => {
  if (Number.isFinite(element.duration)) duration.value = element.duration;
});
element.addEventListener("error", () => {
  if (element.getAttribute("src")) batch(() => {
    playing.value = false;
    broken.value = true;
  });
});

let framed = false;

function frame() {
  if (framed) return;
  framed = true;
  const tick = () => {
    if (!playing.value) {
      framed = false;
      return;
    }
    time.value = live ? live.time : element.currentTime;
    buffering.value = Boolean(live?.starved && growing.value);
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}
