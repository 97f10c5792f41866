// Files for a batch: text, CSV and TSV, subtitles, and JSONL in both dialects of GLM-TTS front ends.

const TEXT_KEYS = ["syn_text", "input_text", "text"];
const PROMPT_KEYS = ["prompt_speech", "prompt_audio"];
const NAME_KEYS = ["uttid", "output_name", "name"];
const COLUMNS = new Set([...TEXT_KEYS, ...PROMPT_KEYS, ...NAME_KEYS, "input", "voice", "seed", "prompt_text"]);
const MOST_SEED = 2 ** 32 - 1;

/** What is wrong with a line: the key of the words, and what they name. */
class Wrong extends Error {
  constructor(key, values = {}) {
    super(key);
    this.words = [key, values];
  }
}

/** The text of a file: UTF-8, or UTF-16 with its mark. Throws for any other encoding, which is never guessed. */
export async function textOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const mark = bytes[0] === 0xff && bytes[1] === 0xfe ? "utf-16le" : bytes[0] === 0xfe && bytes[1] === 0xff ? "utf-16be" : "utf-8";
  return new TextDecoder(mark, { fatal: true }).decode(bytes).replace(/\u001a$/, "");
}

/** The lines of a file: [{number, text, name, voice, seed, prompt, promptText} or {number, text, problem: [key, values]}]. */
export function linesOf(fileName, text) {
  const kind = fileName.toLowerCase().split(".").pop();
  if (["jsonl", "json", "ndjson"].includes(kind)) return json(text);
  if (["srt", "vtt"].includes(kind)) return subtitles(text);
  if (["csv", "tsv"].includes(kind)) return table(text, kind === "tsv" ? "\t" : null);
  return split(text).map((line, index) => ({ number: index + 1, text: line.trim() })).filter((line) => line.text);
}

/** A text in parts of at most `most` characters, each of whole sentences where those are not longer. */
export function piecesOf(text, most) {
  const parts = [];
  let part = [];
  const end = () => {
    const whole = part.join("").trim();
    if (whole) parts.push(whole);
    part = [];
  };
  for (const sentence of text.match(/[^.!?。！？…\n]*(?:[.!?。！？…]+["'”’」』)）]*\s*|\n\s*|$)/g)) {
    const letters = [...sentence];
    if (part.length + letters.length > most) end();
    for (const letter of letters) {
      if (part.length >= most) end();
      part.push(letter);
    }
  }
  end();
  return parts;
}

const split = (text) => text.replace(/^\ufeff/, "").split(/\r\n|\r|\n/);

function json(text) {
  const whole = text.replace(/^\ufeff/, "").trim();
  if (whole.startsWith("[")) {
    try {
      return JSON.parse(whole).map((value, index) => checked(index + 1, value));
    } catch {
      // Lines that begin with a bracket, or damage: line by line it shows where.
    }
  }
  const found = [];
  split(text).forEach((line, index) => {
    // A comma after a line comes from an array.
    const content = line.trim().replace(/,$/, "");
    if (!content) return;
    let value = null;
    try {
      value = JSON.parse(content);
    } catch {
      // Said below.
    }
    found.push(checked(index + 1, value, content));
  });
  return found;
}

function checked(number, value, content = "") {
  try {
    if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Wrong("line_bad_json");
    return { number, ...read(value) };
  } catch (wrong) {
    if (!(wrong instanceof Wrong)) throw wrong;
    const text = TEXT_KEYS.map((key) => value?.[key]).find((item) => typeof item === "string") ?? content;
    return { number, text, problem: wrong.words };
  }
}

function read(value) {
  const text = one(value, [...TEXT_KEYS, "input"]);
  if (!text?.trim()) throw new Wrong("line_no_text");
  const prompt = one(value, PROMPT_KEYS);
  const promptText = one(value, ["prompt_text"]);
  const voice = one(value, ["voice"]);
  if (prompt && !promptText?.trim()) throw new Wrong("line_no_transcript");
  if (prompt && voice) throw new Wrong("line_both", { one: "voice", other: "prompt_audio" });
  const seed = value.seed ?? null;
  if (seed !== null && !(Number.isInteger(seed) && seed >= 0 && seed <= MOST_SEED)) throw new Wrong("line_seed");
  return { text, name: one(value, NAME_KEYS) ?? "", voice, seed, prompt, promptText: prompt ? promptText : null };
}

function one(value, keys) {
  const given = keys.filter((key) => value[key] !== undefined && value[key] !== null && value[key] !== "");
  if (!given.length) return null;
  if (given.length > 1) throw new Wrong("line_both", { one: given[0], other: given[1] });
  const item = value[given[0]];
  if (NAME_KEYS.includes(given[0]) && Number.isInteger(item)) return String(item);
  if (typeof item !== "string") throw new Wrong("line_not_text", { key: given[0] });
  return item;
}

function subtitles(text) {
  const found = [];
  for (const block of split(text).join("\n").split(/\n\s*\n/)) {
    const lines = block.split("\n");
    const at = lines.findIndex((line) => line.includes("-->"));
    if (at < 0) continue;
    const words = lines.slice(at + 1).join(" ").replace(/<[^>]*>|\{\\[^}]*\}/g, "").replace(/\s+/g, " ").trim();
    if (words) found.push({ number: found.length + 1, text: words });
  }
  return found;
}

/** RFC 4180, with whichever of , ; and tab the first line has most of. */
function table(text, given) {
  const content = text.replace(/^\ufeff/, "");
  const first = content.slice(0, content.search(/\r|\n|$/));
  const separator = given ?? [",", ";", "\t"].reduce((best, one) => (first.split(one).length > first.split(best).length ? one : best));
  const rows = cells(content, separator);
  const names = rows[0]?.values.map((name) => name.trim().toLowerCase()) ?? [];
  if (!names.some((name) => [...TEXT_KEYS, "input"].includes(name))) {
    // Without names of columns: a text, or a name and a text.
    return rows.filter(({ values }) => values.some((cell) => cell.trim())).map(({ number, values }) => (
      values.length > 1 ? checked(number, { uttid: values[0].trim(), text: values[1] }) : checked(number, { text: values[0] })));
  }
  return rows.slice(1).filter(({ values }) => values.some((cell) => cell.trim())).map(({ number, values }) => {
    const value = {};
    names.forEach((name, index) => {
      if (COLUMNS.has(name) && values[index]?.trim()) value[name] = name === "seed" ? Number(values[index]) : values[index].trim();
    });
    return checked(number, value);
  });
}

function cells(text, separator) {
  const rows = [];
  let row = [], cell = "", quoted = false, line = 1, began = 1;
  const endCell = () => { row.push(cell); cell = ""; };
  const endRow = () => {
    endCell();
    rows.push({ number: began, values: row });
    row = [];
    began = line;
  };
  for (let at = 0; at < text.length; at++) {
    const letter = text[at];
    if (quoted) {
      if (letter === '"' && text[at + 1] === '"') { cell += '"'; at++; }
      else if (letter === '"') quoted = false;
      else cell += letter;
      if (letter === "\n") line++;
    } else if (letter === '"' && !cell) quoted = true;
    else if (letter === separator) endCell();
    else if (letter === "\n" || letter === "\r") {
      if (letter === "\r" && text[at + 1] === "\n") at++;
      line++;
      endRow();
    } else cell += letter;
  }
  if (cell || row.length) endRow();
  return rows;
}

/** A plain file name of its own for each line; none leads out of a folder. */
export function fileNames(lines, suffix) {
  const taken = new Set();
  const wide = String(lines.at(-1)?.number ?? 1).length;
  return lines.map((line) => {
    const stem = (line.name ?? "").replace(/\.(wav|mp3|ogg|opus|flac)$/i, "").replace(/[\\/:*?"<>|\p{C}]/gu, "_").trim().replace(/^\.+/, "").slice(0, 60)
      || `line-${String(line.number).padStart(wide, "0")}`;
    let name = `${stem}.${suffix}`;
    for (let count = 2; taken.has(name.toLowerCase()); count++) name = `${stem}-${count}.${suffix}`;
    taken.add(name.toLowerCase());
    return name;
  });
}
