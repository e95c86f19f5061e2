// The page of `asrkd serve`: audio from a file or the microphone to one WebSocket a model, and what comes back.
const $ = (id) => document.getElementById(id);
const PIECE_S = 0.1, MAX_BUFFERED_BYTES = 1 << 20, UNSURE = 0.5;
const panels = [];
let job = null;      // what is being recognised now
let audio = null;    // { samples, rate, peaks } of what is on show

function say(text, bad = false) { $("status").textContent = text; $("status").classList.toggle("bad", bad); }

class Panel {
  constructor(model) {
    this.model = model;
    const node = $("panel").content.cloneNode(true);
    this.root = node.querySelector("article");
    this.root.dataset.model = model.name;
    node.querySelector("h2").textContent = model.name;
    node.querySelector(".about").textContent =
      `${(model.parameters / 1e6).toFixed(2)} M parameters · chunks of ${model.chunk_ms} ms · ` +
      `${model.latency_ms} ms algorithmic latency · beam ${model.beam} · ${model.device}`;
    $("models").append(node);
    this.settled = this.root.querySelector(".settled");
    this.partial = this.root.querySelector(".partial");
    this.clear();
  }
  clear() {
    this.settled.replaceChildren(); this.partial.textContent = "";
    this.words = 0; this.told = 0; this.slowest = 0; this.state = "idle";
    this.figure("words", "0");
    for (const name of ["rtf", "latency", "slowest", "heard"]) this.figure(name, "–");
  }
  figure(name, text) { this.root.querySelector(`[data-figure="${name}"]`).textContent = text; }
  open(rate) {
    this.clear();
    this.state = "open";
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/stream`);
    this.socket.onmessage = (message) => this.take(JSON.parse(message.data));
    return new Promise((resolve, reject) => {
      this.socket.onopen = () => {
        this.socket.send(JSON.stringify({ sample_rate_hz: rate, encoding: "s16le", model: this.model.name }));
        resolve();
      };
      this.socket.onclose = () => {
        if (this.state === "open") { this.state = "lost"; say(`${this.model.name}: the connection was closed`, true); }
        reject(new Error("the server cannot be reached"));
        ended();
      };
    });
  }
  send(bytes) { if (this.socket.readyState === WebSocket.OPEN) this.socket.send(bytes); }
  finish() { this.send(JSON.stringify({ event: "end" })); }
  take(event) {
    if (event.event === "word") this.add(event.word);
    else if (event.event === "partial") this.rest(event.text);
    else if (event.event === "final") {
      // What was told as settled stays; the final brings the rest of its words.
      for (const word of event.words.slice(this.told)) this.add(word);
      this.told = 0; this.partial.textContent = "";
      if (event.reason !== "end") this.settled.append(" ");
    } else if (event.event === "progress") {
      this.slowest = Math.max(this.slowest, event.latency_ms);
      this.figure("rtf", event.rtf.toFixed(3));
      this.figure("latency", `${event.latency_ms.toFixed(0)} ms`);
      this.figure("slowest", `${this.slowest.toFixed(0)} ms`);
      this.figure("heard", `${event.decoded_s.toFixed(1)} s`);
    } else if (event.event === "ended") {
      this.state = "ended";
      if (event.reason !== "finished") say(`${this.model.name}: ${event.reason}`, true);
    } else if (event.event === "error") { this.state = "failed"; say(`${this.model.name}: ${event.reason}`, true); }
  }
  rest(text) {
    // A partial reads the whole segment; the words told before are shown already.
    this.partial.textContent = text.split(/\s+/).filter(Boolean).slice(this.told).join(" ");
  }
  add(word) {
    const node = document.createElement("button");
    node.type = "button";
    node.className = word.confidence < UNSURE ? "word unsure" : "word";
    node.textContent = word.text;
    node.title = `${word.start_s.toFixed(2)} to ${word.end_s.toFixed(2)} s, confidence ${(100 * word.confidence).toFixed(0)} %`;
    node.dataset.start = word.start_s; node.dataset.end = word.end_s;
    node.onclick = () => play(word.start_s);
    this.settled.append(node, " ");
    this.told += 1; this.words += 1;
    this.figure("words", String(this.words));
    this.partial.textContent = this.partial.textContent.split(/\s+/).slice(1).join(" ");
  }
}

function play(seconds) {
  const player = $("player");
  if (!player.src) return;
  player.currentTime = Math.max(0, seconds - 0.05);
  player.play().catch(() => {});
  draw();
}

// ---------------------------------------------------------------- sending

function toInt16(samples) {
  const out = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i++) out[i] = Math.max(-32768, Math.min(32767, Math.round(32768 * samples[i])));
  return out.buffer;
}

async function begin(rate) {
  await stop();
  const mine = { stopped: false, finished: false, rate };
  job = mine;
  document.body.dataset.state = "running";
  $("stop").disabled = false;
  await Promise.all(panels.map((panel) => panel.open(rate)));
  return mine;
}

function finish(mine) {
  if (mine.finished) return;
  mine.finished = true;
  for (const panel of panels) panel.finish();
}

function ended() {
  if (panels.every((panel) => panel.state !== "open")) {
    if (job) { job.release?.(); job.stopped = true; job = null; }
    $("stop").disabled = true;
    $("level").value = 0;
    document.body.dataset.state = "done";
    if (!$("status").classList.contains("bad")) say("done");
    draw();
  }
}

async function stop() {
  const mine = job;
  if (!mine) return;
  mine.stopped = true;
  mine.release?.();
  finish(mine);
  $("player").pause();
  await new Promise((resolve) => {
    const wait = () => (job === mine ? setTimeout(wait, 20) : resolve());
    wait();
  });
}

async function hearFile(file) {
  say(`reading ${file.name} …`);
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, panels[0].model.sample_rate_hz).decodeAudioData(await file.arrayBuffer());
  } catch { say(`${file.name}: this browser cannot decode it`, true); return; }
  const samples = new Float32Array(decoded.length);
  for (let c = 0; c < decoded.numberOfChannels; c++) {
    const channel = decoded.getChannelData(c);
    for (let i = 0; i < samples.length; i++) samples[i] += channel[i] / decoded.numberOfChannels;
  }
  const rate = decoded.sampleRate, mine = await begin(rate);
  show(samples, rate, URL.createObjectURL(file));
  say(`${file.name}, ${(samples.length / rate).toFixed(1)} s`);
  const paced = $("pace").checked, size = Math.round(PIECE_S * rate), started = performance.now();
  if (paced) $("player").play().catch(() => {});
  for (let at = 0; at < samples.length && !mine.stopped; at += size) {
    const ahead_ms = paced ? started + 1000 * at / rate - performance.now() : 0;
    if (ahead_ms > 0) await new Promise((resolve) => setTimeout(resolve, ahead_ms));
    while (!mine.stopped && panels.some((panel) => panel.socket.bufferedAmount > MAX_BUFFERED_BYTES))
      await new Promise((resolve) => setTimeout(resolve, 20));
    const piece = toInt16(samples.subarray(at, at + size));
    for (const panel of panels) panel.send(piece);
  }
  finish(mine);
}

async function hearMicrophone() {
  let stream;
  try { stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } }); }
  catch (error) { say(`no microphone: ${error.message}`, true); return; }
  const context = new AudioContext();
  await context.audioWorklet.addModule("worklet.js");
  const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0 });
  const mine = await begin(context.sampleRate);
  const heard = [];
  say("listening: speak");
  tap.port.onmessage = ({ data }) => {
    if (mine.stopped) return;
    heard.push(data);
    $("level").value = Math.min(1, 4 * Math.sqrt(data.reduce((sum, x) => sum + x * x, 0) / data.length));
    const piece = toInt16(data);
    for (const panel of panels) panel.send(piece);
    if (heard.length % 5 === 0) showLive(heard, context.sampleRate);
  };
  mine.release = () => {
    mine.release = null;
    for (const track of stream.getTracks()) track.stop();
    const rate = context.sampleRate;
    context.close();
    const all = join(heard);
    if (all.length) show(all, rate, URL.createObjectURL(wav(all, rate)));
  };
  context.createMediaStreamSource(stream).connect(tap);
}

function join(pieces) {
  const all = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) { all.set(piece, at); at += piece.length; }
  return all;
}

function wav(samples, rate) {
  const head = new DataView(new ArrayBuffer(44)), bytes = 2 * samples.length;
  const text = (at, value) => [...value].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); head.setUint32(4, 36 + bytes, true); text(8, "WAVEfmt "); head.setUint32(16, 16, true);
  head.setUint16(20, 1, true); head.setUint16(22, 1, true); head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true); head.setUint16(32, 2, true); head.setUint16(34, 16, true);
  text(36, "data"); head.setUint32(40, bytes, true);
  return new Blob([head.buffer, toInt16(samples)], { type: "audio/wav" });
}

// ---------------------------------------------------------------- waveform

function peaksOf(samples, columns) {
  const peaks = new Float32Array(columns), step = samples.length / columns;
  for (let c = 0; c < columns; c++) {
    let most = 0;
    for (let i = Math.floor(c * step); i < Math.floor((c + 1) * step); i++) most = Math.max(most, Math.abs(samples[i]));
    peaks[c] = most;
  }
  return peaks;
}

function show(samples, rate, url) {
  const player = $("player");
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = url; player.hidden = false;
  audio = { seconds: samples.length / rate, peaks: peaksOf(samples, 1200) };
  draw();
}

function showLive(pieces, rate) {
  const last = join(pieces.slice(-500));
  audio = { seconds: last.length / rate, peaks: peaksOf(last, 600), live: true };
  draw();
}

function draw() {
  const canvas = $("wave"), width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  const height = Math.round(96 * devicePixelRatio), pen = canvas.getContext("2d");
  canvas.width = width; canvas.height = height;
  if (!audio) return;
  const style = getComputedStyle(document.body), player = $("player");
  const top = Math.max(0.05, ...audio.peaks), count = audio.peaks.length;
  const now = player.src && !audio.live ? player.currentTime / audio.seconds : -1;
  for (let c = 0; c < count; c++) {
    const tall = Math.max(1, 0.92 * height * audio.peaks[c] / top);
    pen.fillStyle = style.getPropertyValue(c / count < now ? "--accent" : "--quiet");
    pen.fillRect(c * width / count, (height - tall) / 2, Math.max(1, width / count - 0.5), tall);
  }
  for (const word of document.querySelectorAll(".word"))
    word.classList.toggle("now", now >= 0 && !player.paused && player.currentTime >= +word.dataset.start && player.currentTime < +word.dataset.end + 0.04);
}

$("wave").onclick = (event) => { if (audio && !audio.live) play(audio.seconds * event.offsetX / $("wave").clientWidth); };
$("wave").onkeydown = (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && audio) { event.preventDefault(); play(Math.max(0, $("player").currentTime + step)); }
};
$("file").onchange = () => { const file = $("file").files[0]; if (file) hearFile(file).catch((error) => say(error.message, true)); $("file").value = ""; };
$("speak").onclick = () => hearMicrophone().catch((error) => say(error.message, true));
$("stop").onclick = () => stop();
addEventListener("resize", draw);
setInterval(() => { if (!$("player").paused) draw(); }, 60);

try {
  const info = await (await fetch("info")).json();
  for (const model of info.models) panels.push(new Panel(model));
  document.body.dataset.state = "ready";
  say("choose a file or speak");
} catch { say("the server cannot be reached", true); }
