// The page: a microphone or a file -> text, by the server that the page came from and no other.
import { WRITERS } from "./formats.js";

const $ = (id) => document.getElementById(id);
const RETRIES_S = [0.5, 1, 2, 4, 8];
const KEEP_S = 30; // of sound while there is no connection
const AHEAD_S = 5; // of sound in the socket's buffer
const ZEROS_S = 5; // no microphone that works gives zeros for so long
const said = { texts: [], words: [], sound: [], rate: 0 };

// --- what is shown ---

function tell(text = "") {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function show(text, kind = "") {
  const line = document.createElement("p");
  line.textContent = text;
  line.className = kind;
  $("finals").append(line);
}

function partial(stable = "", unstable = "") {
  $("stable").textContent = stable;
  $("unstable").textContent = unstable;
}

function add(text, words) {
  show(text);
  said.texts.push(text);
  said.words.push(...words);
  offer();
}

function offer() {
  for (const button of document.querySelectorAll(".save, #copy, #clear")) {
    button.disabled = !said.texts.length && button.dataset.kind !== "wav";
  }
  const wav = document.querySelector("[data-kind=wav]");
  wav.hidden = wav.disabled = !said.sound.length || Boolean(live);
}

// --- the server ---

const fragment = new URLSearchParams(location.hash.slice(1)).get("token");
if (fragment) {
  sessionStorage.setItem("token", fragment);
  history.replaceState(null, "", location.pathname + location.search);
}
const token = () => sessionStorage.getItem("token") || "";
const headers = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

// What is wrong, for people; null if nothing is.
async function refusal(response) {
  if (response.ok) return null;
  const { error } = await response.json().catch(() => ({ error: { message: response.statusText } }));
  if (response.status === 401) {
    $("ask").hidden = false;
    $("token").focus();
    return token() ? "The server has another token: enter it below." : "The server wants its token: enter it below.";
  }
  const wait = response.headers.get("Retry-After");
  if (response.status === 503) return `The server is busy; try again in ${wait || 10} s.`;
  return `The server says: ${error.message}`;
}

async function models() {
  const response = await fetch("v1/models", { headers: headers() }).catch(() => null);
  if (!response) return tell("The server does not answer.");
  const wrong = await refusal(response);
  if (wrong) return tell(wrong);
  $("ask").hidden = true;
  const { data } = await response.json();
  $("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
  $("models").hidden = data.length < 2;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  tell();
  models();
});

// --- a microphone ---

class Live {
  constructor() {
    this.queue = []; // sound that waits for the socket
    this.waiting = 0; // samples of it
    this.lost = 0; // samples that fell out of it, to be told
    this.sent = 0; // samples, with those lost, of all connections
    this.heard = 0; // samples from the microphone
    this.zeros = 0;
    this.tries = 0;
    this.over = false;
  }

  async open() {
    const wish = (id) => $(id).checked;
    const constraints = {
      channelCount: 1,
      echoCancellation: wish("echoCancellation"),
      noiseSuppression: wish("noiseSuppression"),
      autoGainControl: wish("autoGainControl"),
      ...($("device").value ? { deviceId: { exact: $("device").value } } : {}),
    };
    this.context = new AudioContext(); // within the click, or it stays suspended
    this.context.resume();
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    if (this.over) return this.release();
    this.rate = said.rate = this.context.sampleRate;
    await this.capture();
    const [track] = this.stream.getAudioTracks();
    track.onended = () => { tell("The microphone is gone."); stop(); };
    track.onmute = () => tell("The microphone is muted by the system, or by a switch on it.");
    track.onunmute = () => tell();
    this.clock = setInterval(() => this.tick(), 1000);
    this.lock = await navigator.wakeLock?.request("screen").catch(() => null);
    devices();
  }

  async capture() {
    const { context } = this;
    await context.audioWorklet.addModule("worklet.js");
    this.node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => this.hear(data);
    context.createMediaStreamSource(this.stream).connect(this.node);
    context.onstatechange = () => this.watch(context.state !== "running");
  }

  hear({ samples, level }) {
    $("level").value = level;
    this.heard += samples.length;
    const seconds = Math.floor(this.heard / this.rate);
    $("time").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    if (samples.some((value) => value)) this.zeros = -Infinity;
    this.zeros += samples.length;
    if (this.zeros > ZEROS_S * this.rate) {
      this.zeros = -Infinity;
      tell("There is only silence: is the microphone switched off, or another one meant? See Settings.");
    }
    if ($("keep").checked) said.sound.push(samples.slice());
    if (!this.socket) this.connect(); // not before there is sound: a server does not wait for long
    this.queue.push(samples);
    this.waiting += samples.length;
    while (this.waiting > KEEP_S * this.rate) {
      const first = this.queue.shift();
      this.waiting -= first.length;
      this.lost += first.length;
    }
    this.send();
  }

  send() {
    if (this.socket?.readyState !== WebSocket.OPEN || !this.ready) return;
    while (this.queue.length && this.socket.bufferedAmount < AHEAD_S * this.rate * 2) {
      if (this.lost) {
        this.socket.send(JSON.stringify({ type: "lost", samples: this.lost }));
        show(`${(this.lost / this.rate).toFixed(1)} s of sound are lost`, "gap");
        this.sent += this.lost;
        this.lost = 0;
      }
      const samples = this.queue.shift();
      this.waiting -= samples.length;
      this.sent += samples.length;
      this.socket.send(samples);
    }
    if (this.queue.length) setTimeout(() => this.send(), 100);
    else if (this.over && !this.ended) {
      this.ended = true;
      this.socket.send('{"type": "end"}');
    }
  }

  connect() {
    const url = new URL("v1/stream", location.href);
    url.search = new URLSearchParams({ rate: this.rate, model: $("model").value });
    this.url = url;
    const socket = new URL(url);
    socket.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.ready = this.ended = this.finished = false;
    this.socket = new WebSocket(socket, ["asr.v1", ...(token() ? [`asr.token.${token()}`] : [])]);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => this.told(JSON.parse(data));
    this.socket.onclose = ({ code }) => this.closed(code);
  }

  told(event) {
    const at = (seconds) => Math.round((seconds + this.base) * 1000) / 1000;
    switch (event.type) {
      case "ready":
        this.ready = true;
        this.base = this.sent / this.rate; // times go on over connections
        this.tries = 0;
        tell();
        this.send();
        break;
      case "partial":
        partial(event.stable, event.unstable);
        $("lag").textContent = "";
        break;
      case "final":
        partial();
        add(event.text, event.words.map((word) => ({ ...word, start_s: at(word.start_s), end_s: at(word.end_s) })));
        break;
      case "endpoint":
        partial();
        break;
      case "status":
        $("lag").textContent = `${event.lag_s.toFixed(1)} s behind`;
        break;
      case "error":
        this.failed = event.message;
        break;
      case "done":
        this.finished = true;
    }
  }

  async closed(code) {
    if (live !== this) return;
    $("lag").textContent = "";
    const cut = `${$("stable").textContent} ${$("unstable").textContent}`.trim();
    partial();
    if (cut) add(`${cut} …`, []);
    if ((this.finished && this.over) || this.failed || code === 1008) {
      tell(this.failed ? `The server says: ${this.failed}` : "");
      return close();
    }
    // Why a socket did not open is told to a plain request only.
    const response = await fetch(this.url, { headers: headers() }).catch(() => null);
    const { error } = response ? await response.json().catch(() => ({})) : {};
    if (response && error?.param !== "upgrade" && error?.code !== "shutting_down") { // it may come again
      tell(await refusal({ ok: false, status: response.status, headers: response.headers, json: async () => ({ error }) }));
      return close();
    }
    const wait = RETRIES_S[this.tries++];
    if (wait === undefined) {
      tell("The connection is lost, and the server does not answer.");
      return close();
    }
    tell("The connection is lost; trying again. What you say meanwhile is kept for half a minute.");
    setTimeout(() => live === this && this.connect(), wait * 1000);
  }

  watch(stands) {
    if (stands) tell("The browser has suspended the sound: tap “Go on”.");
    else if (!$("resume").hidden) tell();
    $("resume").hidden = !stands;
  }

  // A clock may stand though it is said to run.
  tick() {
    const now = this.context.currentTime;
    if (now === this.before || !$("resume").hidden) this.watch(now === this.before);
    this.before = now;
  }

  // With a new clock, which some browsers need.
  async goOn() {
    this.forget();
    this.context = new AudioContext(); // within the click
    this.context.resume();
    if (this.context.sampleRate === this.rate) return this.capture();
    close();
    tell("The microphone has changed: speak again.");
  }

  forget() {
    if (!this.context) return;
    this.context.onstatechange = null;
    if (this.context.state !== "closed") this.context.close();
  }

  end() {
    this.over = true;
    this.release();
    if (this.socket) this.send();
    else close();
  }

  release() {
    clearInterval(this.clock);
    this.stream?.getTracks().forEach((track) => { track.onended = null; track.stop(); });
    this.forget();
    this.lock?.release();
    $("level").value = -60;
    $("resume").hidden = true;
  }
}

let live = null;

const REFUSED = {
  NotAllowedError: "The microphone is not allowed: click the sign left of the address, allow it, and reload the page.",
  NotFoundError: "There is no microphone: plug one in.",
  NotReadableError: "The microphone is in use by another program, or the system refuses it.",
  OverconstrainedError: "That microphone is gone: choose another one in Settings.",
};

async function start() {
  tell();
  if (!navigator.mediaDevices) {
    const port = location.port || "80";
    return tell(`Browsers give the microphone to secure pages only: open this page with https, or run ` +
      `“ssh -L ${port}:localhost:${port} ${location.hostname}” and open http://localhost:${port}/.`);
  }
  live = new Live();
  $("speak").textContent = "Stop";
  $("speak").setAttribute("aria-pressed", "true");
  said.sound = [];
  offer();
  try {
    await live.open();
  } catch (error) {
    live?.release();
    close();
    tell(REFUSED[error.name] || `The microphone cannot be used: ${error.message}`);
  }
}

// At once for the ear; the last words still come.
function stop() {
  $("speak").disabled = true;
  live?.end();
}

function close() {
  live?.release();
  live = null;
  $("speak").textContent = "Speak";
  $("speak").disabled = false;
  $("speak").setAttribute("aria-pressed", "false");
  $("lag").textContent = "";
  offer();
}

async function devices() {
  const chosen = $("device").value;
  const all = await navigator.mediaDevices.enumerateDevices();
  const inputs = all.filter((one) => one.kind === "audioinput" && one.deviceId);
  $("device").replaceChildren(new Option("the system's", ""), ...inputs.map((one) => new Option(one.label, one.deviceId)));
  $("device").value = inputs.some((one) => one.deviceId === chosen) ? chosen : "";
}

navigator.mediaDevices?.addEventListener("devicechange", devices);
$("speak").addEventListener("click", () => (live ? stop() : start()));
$("resume").addEventListener("click", () => live?.goOn());
addEventListener("keydown", (event) => {
  if (event.code !== "Space" || event.repeat || event.target.closest("button, input, select, summary")) return;
  event.preventDefault();
  $("speak").click();
});
addEventListener("pagehide", () => live?.socket?.readyState === WebSocket.OPEN && live.socket.send('{"type": "end"}'));

// --- a file ---

async function transcribe(file) {
  tell(`${file.name} is being heard …`);
  const form = new FormData();
  const fields = { model: $("model").value, stream: "true", response_format: "verbose_json", timestamp_granularities: "word" };
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  form.append("file", file);
  const response = await fetch("v1/audio/transcriptions", { method: "POST", body: form, headers: headers() })
    .catch(() => null);
  if (!response) return tell("The server does not answer.");
  const wrong = await refusal(response);
  if (wrong) return tell(wrong);
  let text = "", failed = "";
  const decoder = new TextDecoder();
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    text += decoder.decode(value, { stream: true });
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events.filter((one) => one.startsWith("data: "))) {
      const { type, delta, words, error } = JSON.parse(event.slice(6));
      if (error) failed = error.message;
      if (type === "transcript.text.delta") {
        add(delta.trim(), words.map(({ word, start, end, confidence }) => ({ text: word, start_s: start, end_s: end, confidence })));
      }
    }
  }
  tell(failed ? `The server says: ${failed}` : "");
}

$("file").addEventListener("change", ({ target }) => target.files[0] && transcribe(target.files[0]));
const main = document.querySelector("main");
addEventListener("dragover", (event) => { event.preventDefault(); main.classList.add("dropping"); });
addEventListener("dragleave", () => main.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  main.classList.remove("dropping");
  if (event.dataTransfer.files[0]) transcribe(event.dataTransfer.files[0]);
});

// --- the text ---

$("copy").addEventListener("click", async () => {
  await navigator.clipboard?.writeText(said.texts.join("\n")).catch(() => tell("The browser does not let the text be copied."));
});
$("clear").addEventListener("click", () => {
  Object.assign(said, { texts: [], words: [], sound: [] });
  $("finals").replaceChildren();
  tell();
  offer();
});
for (const button of document.querySelectorAll(".save")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(WRITERS[button.dataset.kind](said));
    link.download = `speech.${button.dataset.kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

models();
