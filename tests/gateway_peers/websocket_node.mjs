// A client of vllm-omni's dialect with the npm package ws: sends a text word by word, and prints what it hears.
import WebSocket from "ws";

const [url, text, ...settings] = process.argv.slice(2);
const socket = new WebSocket(url);
const heard = { messages: [], bytes: 0, frames: 0, beforeDone: false };
let sent = false;
const say = (type, more = {}) => socket.send(JSON.stringify({ type, ...more }));

socket.on("open", async () => {
  say("session.config", { response_format: "pcm", stream_audio: true, ...JSON.parse(settings[0] ?? "{}") });
  for (const word of text.match(/\S+\s*/g)) {
    say("input.text", { text: word });
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  // The end of the text is sent when its beginning was heard.
  while (!heard.frames && !heard.messages.some((message) => message.type === "error"))
    await new Promise((resolve) => setTimeout(resolve, 10));
  sent = true;
  say("input.done");
});
socket.on("message", (data, isBinary) => {
  if (isBinary) {
    heard.frames += 1;
    heard.bytes += data.length;
    heard.beforeDone ||= !sent;
    return;
  }
  const message = JSON.parse(data);
  heard.messages.push(message);
  if (message.type === "session.done") say("session.close");
});
socket.on("unexpected-response", (_, answer) => {
  console.log(JSON.stringify({ status: answer.statusCode }));
  process.exit(0);
});
socket.on("close", (code) => console.log(JSON.stringify({ ...heard, code })));
