// Recordings of a speaker: from the microphone or a file, decoded by the browser, as WAV with 16 bits.

const RATE = 24000;
export const MOST_S = 30;
const SILENT = 0.01;

/** Why there is no microphone: the key of the words, or null. */
export function whyNoMicrophone() {
  if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) return "microphone_insecure";
  return null;
}

/** Records until `stop` or for `MOST_S` seconds. Throws the key of the words for a refusal. */
export class Recorder {
  static async start(onEnd) {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
      });
    } catch (error) {
      throw error.name === "NotFoundError" ? "microphone_none" : "microphone_denied";
    }
    return new Recorder(stream, onEnd);
  }

  constructor(stream, onEnd) {
    this.stream = stream;
    this.context = new AudioContext();
    this.analyser = this.context.createAnalyser();
    this.analyser.fftSize = 2048;
    this.samples = new Float32Array(this.analyser.fftSize);
    this.context.createMediaStreamSource(stream).connect(this.analyser);
    this.recorder = new MediaRecorder(stream);
    const parts = [];
    this.recorder.ondataavailable = ({ data }) => parts.push(data);
    this.recorder.onstop = () => {
      this.release();
      if (!this.discarded) onEnd(new Blob(parts, { type: this.recorder.mimeType }));
    };
    this.recorder.start();
    this.began = performance.now();
    this.timer = setTimeout(() => this.stop(), MOST_S * 1000);
  }

  get seconds() {
    return Math.min(MOST_S, (performance.now() - this.began) / 1000);
  }

  /** The loudest sample of the last moments, 0..1. */
  get level() {
    this.analyser.getFloatTimeDomainData(this.samples);
    let most = 0;
    for (const sample of this.samples) most = Math.max(most, Math.abs(sample));
    return most;
  }

  stop() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
  }

  discard() {
    this.discarded = true;
    this.stop();
  }

  release() {
    clearTimeout(this.timer);
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
  }
}

/** A recording in any format that the browser knows: {blob (WAV), seconds, cut (its length, if it was longer), silent}.
 * Throws if it can't be decoded. */
export async function decoded(blob, mostS = MOST_S) {
  const audio = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer());
  const count = Math.min(audio.length, Math.floor(mostS * RATE));
  const mono = new Float32Array(count);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    const samples = audio.getChannelData(channel);
    for (let index = 0; index < count; index++) mono[index] += samples[index] / audio.numberOfChannels;
  }
  let loudest = 0;
  for (const sample of mono) loudest = Math.max(loudest, Math.abs(sample));
  return { blob: wav(mono), seconds: count / RATE, cut: audio.length > count ? audio.duration : null, silent: loudest < SILENT };
}

function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + samples.length * 2));
  const words = (at, text) => [...text].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  words(0, "RIFF");
  view.setUint32(4, 36 + samples.length * 2, true);
  words(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, RATE * 2, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  words(36, "data");
  view.setUint32(40, samples.length * 2, true);
  samples.forEach((sample, index) => view.setInt16(44 + index * 2, Math.max(-1, Math.min(1, sample)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

export async function toBase64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}
