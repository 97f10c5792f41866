// Audio that plays while it is made: samples are scheduled as AudioBufferSourceNodes a little ahead of the clock.

/** Seconds between the first samples and their sound, and how far ahead of the clock sources are scheduled. (Browsers
 * wake the timers of hidden pages once a second.) */
const LEAD_S = 0.3;
const AHEAD_S = 3;
const PUMP_MS = 100;
/** A source has at least this much, so that there are not too many. */
const PIECE_S = 0.1;

export class Live {
  /** To be made in the click: browsers let no page sound on its own account. */
  constructor(rate) {
    this.rate = rate;
    this.context = new AudioContext({ sampleRate: rate, latencyHint: "playback" });
    this.context.resume();
    this.gain = this.context.createGain();
    this.gain.connect(this.context.destination);
    this.pieces = [];
    this.made = 0;
    this.complete = false;
    this.paused = false;
    this.onend = () => {};
    this.sources = [];
    this.cursor = 0;
    this.next = 0;
    this.timer = setInterval(() => this.pump(), PUMP_MS);
  }

  /** Add samples at their end. */
  push(samples) {
    if (!samples.length) return;
    this.pieces.push({ at: this.made, samples });
    this.made += samples.length;
    this.pump();
  }

  /** No more samples will come. */
  finish() {
    this.complete = true;
    this.pump();
  }

  get duration() {
    return this.made / this.rate;
  }

  /** Seconds of the audio that have been heard. */
  get time() {
    const now = this.context.currentTime;
    let heard = null;
    for (const source of this.sources) {
      if (source.start > now) break;
      heard = source;
    }
    if (!heard) return this.sources.length ? this.sources[0].from / this.rate : this.cursor / this.rate;
    return (heard.from + Math.min(heard.count, (now - heard.start) * this.rate)) / this.rate;
  }

  /** Whether it waits for samples that are not made yet. */
  get starved() {
    return !this.complete && this.cursor >= this.made && this.next <= this.context.currentTime;
  }

  seek(seconds) {
    this.silence();
    this.cursor = Math.max(0, Math.min(this.made, Math.round(seconds * this.rate)));
    this.next = 0;
    this.pump();
  }

  pause() {
    this.paused = true;
    this.context.suspend();
  }

  resume() {
    this.paused = false;
    this.context.resume();
    this.pump();
  }

  close() {
    clearInterval(this.timer);
    this.silence();
    this.context.close().catch(() => {});
  }

  silence() {
    for (const { node } of this.sources) {
      node.onended = null;
      node.stop();
      node.disconnect();
    }
    this.sources = [];
  }

  pump() {
    if (this.context.state === "closed") return;
    const now = this.context.currentTime;
    while (this.sources.length > 1 && this.sources[1].start <= now) this.sources.shift();
    const enough = this.complete ? 1 : Math.min(PIECE_S * this.rate, this.rate);
    while (this.made - this.cursor >= enough && (this.next === 0 || this.next < now + AHEAD_S)) {
      // After a gap there is a lead again: one gap and not many small ones.
      if (this.next <= now) this.next = now + (this.cursor && this.complete ? 0.02 : LEAD_S);
      const count = Math.min(this.made - this.cursor, this.rate);
      const buffer = this.context.createBuffer(1, count, this.rate);
      this.copy(buffer.getChannelData(0), this.cursor);
      const node = this.context.createBufferSource();
      node.buffer = buffer;
      node.connect(this.gain);
      node.start(this.next);
      this.sources.push({ node, start: this.next, from: this.cursor, count });
      this.cursor += count;
      this.next += count / this.rate;
    }
    if (this.complete && this.cursor >= this.made && now >= this.next && !this.paused) {
      clearInterval(this.timer);
      this.onend();
    }
  }

  copy(target, from) {
    let index = this.pieces.length - 1;
    while (index > 0 && this.pieces[index].at > from) index--;
    let filled = 0;
    while (filled < target.length) {
      const { at, samples } = this.pieces[index++];
      const part = samples.subarray(from + filled - at, from - at + target.length);
      target.set(part, filled);
      filled += part.length;
    }
  }
}

/** Samples out of the bytes of a file that grows. WAV has them as they are. Of other formats the browser decodes what
 * is there so far, each time anew, and the samples that are new are taken. */
export class Unpacker {
  constructor(format, rate, take, isHungry) {
    Object.assign(this, { format, rate, take, isHungry });
    this.parts = [];
    this.size = 0;
    this.taken = 0;
    this.header = null;
    this.odd = new Uint8Array(0);
    this.decoding = null;
    this.decoded = 0;
  }

  push(bytes) {
    if (this.format === "wav") return this.pcm(bytes);
    this.parts.push(bytes);
    this.size += bytes.length;
    if (!this.decoding && this.size > this.decoded * 1.3 && this.isHungry()) this.decoding = this.decode(false);
  }

  /** Take what is left. */
  async finish() {
    if (this.format === "wav") return;
    await this.decoding;
    await this.decode(true);
  }

  pcm(bytes) {
    if (!this.header) {
      const joined = join([this.odd, bytes]);
      const at = find(joined, [0x64, 0x61, 0x74, 0x61]);
      if (at < 0 || joined.length < at + 8) {
        this.odd = joined;
        return;
      }
      this.header = joined.slice(0, at + 8);
      this.odd = new Uint8Array(0);
      bytes = joined.slice(at + 8);
    }
    const all = this.odd.length ? join([this.odd, bytes]) : bytes;
    const count = all.length >> 1;
    this.odd = all.slice(count * 2);
    const view = new DataView(all.buffer, all.byteOffset, count * 2);
    const samples = new Float32Array(count);
    for (let index = 0; index < count; index++) samples[index] = view.getInt16(index * 2, true) / 32768;
    this.take(samples);
  }

  async decode(whole) {
    const size = this.size;
    try {
      const context = new OfflineAudioContext(1, 1, this.rate);
      const audio = await context.decodeAudioData(join(this.parts).buffer);
      // The end of what is not whole may still change.
      const end = audio.length - (whole ? 0 : Math.round(0.05 * this.rate));
      if (end > this.taken) {
        this.take(audio.getChannelData(0).slice(this.taken, end));
        this.taken = end;
      }
    } catch {
      // Too little yet, or a format that this browser decodes as whole files at most.
    } finally {
      this.decoded = size;
      this.decoding = null;
    }
  }
}

const TYPES = { wav: "audio/wav", mp3: "audio/mpeg", opus: "audio/ogg", flac: "audio/flac" };

/** What was streamed as a file: a WAV gets its sizes, which a stream does not know. */
export function wholeFile(parts, format) {
  const bytes = join(parts);
  const at = format === "wav" ? find(bytes, [0x64, 0x61, 0x74, 0x61]) : -1;
  if (at > 0) {
    const view = new DataView(bytes.buffer);
    view.setUint32(4, bytes.length - 8, true);
    view.setUint32(at + 4, bytes.length - at - 8, true);
  }
  return new Blob([bytes], { type: TYPES[format] });
}

export function join(parts) {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

function find(bytes, wanted) {
  for (let at = 12; at + wanted.length <= bytes.length; at++) {
    if (wanted.every((byte, index) => bytes[at + index] === byte)) return at;
  }
  return -1;
}

export function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index++) bytes[index] = binary.charCodeAt(index);
  return bytes;
}
