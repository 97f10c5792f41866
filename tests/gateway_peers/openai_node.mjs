// One call of OpenAI's package for Node: `node openai_node.mjs BASE_URL KEY CALL`. Prints what came as JSON.
import OpenAI from "openai";

const [baseURL, apiKey, call, ...rest] = process.argv.slice(2);
const client = (options = {}) => new OpenAI({ baseURL, apiKey, ...options });
const speech = (body, options) =>
  client(options).audio.speech.create({ model: "tts-1", voice: "alloy", input: "Hello there.", ...body });
const slow = (seconds) => ({ fault: "audio", seconds, rtf: 1.0, segments: 2 * seconds });

const calls = {
  async create() {
    const audio = Buffer.from(await (await speech({ response_format: rest[0] })).arrayBuffer());
    return { begins: audio.subarray(0, 4).toString("latin1"), bytes: audio.length };
  },

  async streamed() {
    const began = performance.now();
    const answer = await speech({ response_format: "pcm", options: slow(3) });
    let bytes = 0;
    let first = 0;
    for await (const chunk of answer.body) {
      first ||= performance.now() - began;
      bytes += chunk.length;
    }
    return { bytes, first, total: performance.now() - began };
  },

  async events() {
    const answer = await speech({ response_format: "pcm", stream_format: "sse" });
    const text = await answer.text();
    return text.split("\n").filter((line) => line.startsWith("data: ")).map((line) => JSON.parse(line.slice(6)));
  },

  // The package reads the events of a call with `stream: true` by itself.
  async decoded() {
    const types = [];
    for await (const event of await client().post("/audio/speech", {
      body: { model: "tts-1", voice: "alloy", input: "Hello.", stream_format: "sse" },
      stream: true,
    })) {
      types.push(event.type);
    }
    return types;
  },

  async lists() {
    const models = [];
    for await (const model of client().models.list()) models.push(model.id);
    return { models, voices: (await client().get("/audio/voices")).voices };
  },

  async custom() {
    return { bytes: (await (await speech({ voice: { id: rest[0] } })).arrayBuffer()).byteLength };
  },

  // When each request was sent, and the wait that its answer names: `fetch` is the package's own way to see that.
  async refused() {
    const sent = [];
    const seen = async (...request) => {
      const at = performance.now();
      const answer = await fetch(...request);
      sent.push({ at, wait: Number(answer.headers.get("retry-after-ms")) });
      return answer;
    };
    try {
      await speech(JSON.parse(rest[0]), { fetch: seen, maxRetries: Number(rest[1]) });
      return { sent };
    } catch (error) {
      const { status, code, param, type, requestID } = error;
      return { sent, name: error.constructor.name, status, code, param, type, requestID };
    }
  },

  async timeout() {
    try {
      await speech({ input: "Never heard.", options: slow(30), response_format: "mp3" }, { timeout: 500, maxRetries: 0 });
    } catch (error) {
      return { name: error.constructor.name };
    }
  },
};

console.log(JSON.stringify(await calls[call]()));
