"use strict";
// Pictures come one at a time: the next is asked for ("taken") when this one is on the screen.

const $ = (id) => document.getElementById(id);
const sliders = ["threshold", "iou_threshold"];
let line = null, sources = [], classes = [], settings = {}, chosen = 0, wait = 500, held = null, ended = false;

function connect() {
  const scheme = location.protocol === "https:" ? "wss://" : "ws://";
  line = new WebSocket(scheme + location.host + "/live");
  line.binaryType = "arraybuffer";
  line.onopen = () => { wait = 500; ended = false; say("live", "live"); };
  line.onmessage = (event) => typeof event.data === "string" ? hear(JSON.parse(event.data)) : show(event.data);
  line.onclose = () => {
    if (!ended) say("lost", "no connection");
    setTimeout(connect, wait);
    wait = Math.min(2 * wait, 5000);
  };
}

function wish(values) {
  if (line && line.readyState === WebSocket.OPEN) line.send(JSON.stringify(values));
}

function say(kind, text) {
  $("status").className = "status " + kind;
  $("status").textContent = text;
}

function hear(message) {
  if (message.classes) introduce(message);
  if (message.settings) { settings = message.settings; follow(); }
  if (message.figures) measure(message.figures);
  if (message.ended) { ended = true; say("", "the source has ended"); }
}

function introduce(message) {
  $("model").textContent = message.model;
  document.title = message.sources.join(", ") + " – live";
  sources = message.sources.map((name, number) => {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption");
    figure.className = "waiting";
    caption.textContent = name;
    figure.append(canvas, caption);
    figure.onclick = () => { chosen = number; mark(); };
    figure.ondblclick = fill;
    return { name, figure, canvas, caption, found: {} };
  });
  $("pictures").replaceChildren(...sources.map((source) => source.figure));
  $("pictures").classList.toggle("many", sources.length > 1);
  chosen = 0;
  mark();
  classes = message.classes.map((one) => {
    const button = document.createElement("button");
    const count = document.createElement("span");
    button.type = "button";
    button.style.setProperty("--colour", one.colour);
    button.append(one.name, count);
    button.onclick = () => toggle(one.label);
    return { ...one, button, count };
  });
  $("classes").replaceChildren(...classes.map((one) => one.button));
}

function mark() {
  sources.forEach((source, number) =>
    source.figure.classList.toggle("chosen", sources.length > 1 && number === chosen));
}

function toggle(label) {
  const all = classes.map((one) => one.label);
  const shown = new Set(settings.shown || all);
  // With everything shown, a tap means "only this one".
  if (!settings.shown && classes.length > 1) wish({ shown: [label] });
  else {
    if (!shown.delete(label)) shown.add(label);
    wish({ shown: shown.size === all.length || !shown.size ? null : [...shown] });
  }
}

function follow() {
  for (const name of sliders) {
    if (held !== name) $(name).value = settings[name];
    paint(name);
  }
  $("pause").setAttribute("aria-pressed", settings.paused);
  $("pause").querySelector("span").textContent = settings.paused ? "Go on" : "Pause";
  say(settings.paused ? "" : "live", settings.paused ? "paused" : "live");
  for (const one of classes) {
    one.button.setAttribute("aria-pressed", !settings.shown || settings.shown.includes(one.label));
  }
}

function paint(name) {
  const slider = $(name);
  const part = (slider.value - slider.min) / (slider.max - slider.min);
  slider.style.setProperty("--part", `calc(11px + (100% - 22px) * ${part})`);
  $(name + "-value").textContent = Number(slider.value).toFixed(2);
}

async function show(buffer) {
  const view = new DataView(buffer);
  const start = 2 + view.getUint16(0);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 2, start - 2)));
  const source = sources[head.source];
  try {
    const picture = await createImageBitmap(new Blob([new Uint8Array(buffer, start)], { type: "image/jpeg" }));
    const { canvas, figure, caption } = source;
    if (canvas.width !== picture.width || canvas.height !== picture.height) {
      canvas.width = picture.width;
      canvas.height = picture.height;
    }
    canvas.getContext("2d").drawImage(picture, 0, 0);
    picture.close();
    figure.classList.remove("waiting");
    figure.dataset.frame = head.frame;
    caption.textContent = `${source.name}  ·  ${clock(head.time)}  ·  ${head.size[0]} × ${head.size[1]}`;
  } finally {
    if (line.readyState === WebSocket.OPEN) line.send("taken");
  }
  source.found = head.found;
  const sum = {};
  for (const one of sources)
    for (const label in one.found) sum[label] = (sum[label] || 0) + one.found[label];
  for (const one of classes) one.count.textContent = sum[one.label] || "";
  $("objects").textContent = Object.values(sum).reduce((a, b) => a + b, 0);
  if (head.counts) tell(head.counts);
}

function clock(seconds) {
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  return (seconds >= 3600 ? two(seconds / 3600) + ":" : "") + two((seconds / 60) % 60) + ":" + two(seconds % 60);
}

function tell(counts) {
  $("counts-card").hidden = false;
  $("counts").replaceChildren(...Object.entries(counts).map(([name, values]) => {
    const row = document.createElement("tr");
    const cells = [name, Object.entries(values).map(([what, count]) => `${what} ${count}`).join("  ·  ")];
    row.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return row;
  }));
}

function measure(figures) {
  const short = (value) => value >= 100 ? Math.round(value) : Number(value).toFixed(1);
  $("rate").textContent = short(figures.rate);
  $("network").textContent = short(figures.stages.network || 0);
  $("age").textContent = short(figures.age);
  $("dropped").textContent = figures.dropped;
  const entries = Object.entries(figures.stages);
  const most = Math.max(...entries.map(([, value]) => value), 1e-9);
  $("stages").replaceChildren(...entries.flatMap(([name, value]) => {
    const bar = document.createElement("i");
    bar.style.width = `${100 * value / most}%`;
    const label = Object.assign(document.createElement("span"), { textContent: name });
    const number = Object.assign(document.createElement("b"), { textContent: value.toFixed(1) });
    return [label, bar, number];
  }));
}

function fill() {
  if (document.fullscreenElement) document.exitFullscreen();
  else if ($("pictures").requestFullscreen) $("pictures").requestFullscreen();
}

function snap() {
  const link = document.createElement("a");
  link.href = `/snapshot/${chosen}.jpg`;
  link.download = "";
  link.click();
}

for (const name of sliders) {
  let due = null;
  $(name).oninput = () => {
    held = name;
    paint(name);
    // A finger gives a hundred values a second; the newest of every 50 ms is enough.
    due = due || setTimeout(() => { due = null; wish({ [name]: Math.min(Number($(name).value), 1) }); }, 50);
  };
  $(name).onchange = () => { held = null; };
}
$("pause").onclick = () => wish({ paused: !settings.paused });
$("snapshot").onclick = snap;
$("full").onclick = fill;
$("all").onclick = () => wish({ shown: null });
document.onkeydown = (event) => {
  if (event.target.matches("input, button") || event.metaKey || event.ctrlKey) return;
  if (event.key === " ") { event.preventDefault(); wish({ paused: !settings.paused }); }
  if (event.key === "s") snap();
  if (event.key === "f") fill();
};
connect();
