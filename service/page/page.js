// The page of `ltxkit serve`: asks for clips through /v1/videos, as any client would, and shows what becomes of them.
"use strict";

const form = document.getElementById("form");
const clips = document.getElementById("clips");
const cards = new Map();
let token = sessionStorage.getItem("token") || "";
let models = [];

async function call(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw Object.assign(new Error(body?.error?.message || response.statusText), { status: response.status });
}

const address = (path) => (token ? `${path}${path.includes("?") ? "&" : "?"}token=${encodeURIComponent(token)}` : path);

// ---- the form

function choose(model) {
  for (const name of ["width", "height", "fps"]) form.elements[name].value = model[name];
  form.elements.num_frames.value = model.frames;
  plan();
}

async function offer() {
  const said = await (await call("ltxkit/options")).json();
  models = said.models;
  form.elements.model.replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  for (const name of said.loras) form.elements.lora.add(new Option(name, name));
  document.getElementById("lora-row").hidden = said.loras.length === 0;
  choose(models[0]);
}

let planned = 0;
async function plan() {
  const mine = ++planned;
  const { model, width, height, num_frames, fps } = form.elements;
  const query = new URLSearchParams({ model: model.value, size: `${width.value}x${height.value}`, num_frames: num_frames.value, fps: fps.value });
  let text;
  try {
    const said = await (await call(`ltxkit/plan?${query}`)).json();
    const [peak, there] = [said.peak, said.available].map((bytes) => (bytes / 2 ** 30).toFixed(1));
    text = said.fits ? `Takes ${peak} of ${there} GiB.` : `Takes ${peak} GiB, of which ${there} are free.`;
  } catch (error) {
    text = error.message;
  }
  if (mine === planned) document.getElementById("plan").textContent = text;
}

form.elements.model.addEventListener("change", () => choose(models.find((model) => model.id === form.elements.model.value)));
for (const name of ["width", "height", "num_frames", "fps"]) form.elements[name].addEventListener("change", plan);

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = new FormData();
  for (const name of ["prompt", "model", "seed", "num_frames", "fps", "negative_prompt", "num_inference_steps", "guidance_scale", "lora", "extra_params"]) {
    const value = form.elements[name].value.trim();
    if (value) body.set(name, value);
  }
  body.set("size", `${form.elements.width.value}x${form.elements.height.value}`);
  const file = form.elements.input_reference.files[0];
  if (file) body.set("input_reference", file);
  const button = form.querySelector("form > button");
  button.disabled = true;
  document.getElementById("error").textContent = "";
  try {
    show(await (await call("v1/videos", { method: "POST", body })).json(), true);
  } catch (error) {
    document.getElementById("error").textContent = error.message;
  }
  button.disabled = false;
});

// ---- the gallery

function describe(video) {
  const { width, height, frames, fps, seed } = video.request;
  const clip = `${width}x${height}, ${frames} frames at ${fps} per second, seed ${seed}`;
  if (video.status === "failed") return video.error.message;
  if (video.status === "queued") return `waits behind ${video.queue_position}; ${clip}`;
  return video.status === "completed" ? clip : `${video.stage || "starts"}, ${video.progress} %; ${clip}`;
}

function show(video, first = false) {
  let card = cards.get(video.id);
  if (!card) {
    card = document.getElementById("card").content.firstElementChild.cloneNode(true);
    cards.set(video.id, card);
    card.querySelector(".delete").addEventListener("click", () => remove(video.id));
    card.querySelector(".again").addEventListener("click", () => again(card.video));
    first ? clips.prepend(card) : clips.append(card);
    if (!["completed", "failed"].includes(video.status)) watch(video.id);
  }
  card.video = video;
  card.className = video.status;
  card.querySelector("progress").value = video.progress;
  card.querySelector(".prompt").textContent = video.prompt;
  card.querySelector(".state").textContent = describe(video);
  const [picture, player, save] = ["img", "video", ".save"].map((name) => card.querySelector(name));
  if (video.status === "in_progress") {
    const image = new Image();
    image.onload = () => { if (card.video.status === "in_progress") { picture.src = image.src; picture.hidden = false; } };
    image.src = address(`v1/videos/${video.id}/preview?step=${video.progress}`);
  }
  if (video.status === "completed" && player.hidden) {
    picture.hidden = true;
    player.hidden = save.hidden = false;
    player.poster = address(`v1/videos/${video.id}/content?variant=thumbnail`);
    player.src = save.href = address(`v1/videos/${video.id}/content`);
    player.preload = "none";
    save.download = `${video.id}.mp4`;
  }
}

function watch(id) {
  const events = new EventSource(address(`v1/videos/${id}/events`));
  for (const name of ["queued", "in_progress", "completed", "failed"]) {
    events.addEventListener(name, (event) => {
      show(JSON.parse(event.data));
      if (name === "completed" || name === "failed") events.close();
    });
  }
  events.addEventListener("deleted", () => { events.close(); drop(id); });
}

function drop(id) {
  cards.get(id)?.remove();
  cards.delete(id);
}

async function remove(id) {
  try {
    await call(`v1/videos/${id}`, { method: "DELETE" });
    drop(id);
  } catch (error) {
    cards.get(id).querySelector(".state").textContent = error.message;
  }
}

function again(video) {
  const said = video.request;
  form.elements.model.value = video.model;
  form.elements.prompt.value = video.prompt;
  for (const name of ["width", "height", "fps", "seed"]) form.elements[name].value = said[name];
  form.elements.num_frames.value = said.frames;
  form.elements.negative_prompt.value = said.negative_prompt ?? "";
  const { steps, guidance_scale, ...rest } = said.knobs;
  form.elements.num_inference_steps.value = steps ?? "";
  form.elements.guidance_scale.value = guidance_scale ?? "";
  form.elements.extra_params.value = Object.keys(rest).length ? JSON.stringify(rest) : "";
  form.elements.lora.value = said.loras[0]?.name ?? "";
  plan();
  form.scrollIntoView({ behavior: "smooth" });
}

// ---- the start

async function health() {
  try {
    const said = await (await fetch("healthz")).json();
    document.getElementById("health").textContent = said.status === "ok" ? `${said.jobs.queued} waiting` : said.reasons.join("; ");
  } catch {
    document.getElementById("health").textContent = "the server does not answer";
  }
}

async function start() {
  try {
    await offer();
    const listed = await (await call("v1/videos?limit=50")).json();
    listed.data.forEach((video) => show(video));
    document.getElementById("token-row").hidden = true;
  } catch (error) {
    document.getElementById("token-row").hidden = error.status !== 401;
    document.getElementById("error").textContent = error.message;
  }
}

document.getElementById("token").addEventListener("change", (event) => {
  token = event.target.value;
  sessionStorage.setItem("token", token);
  document.getElementById("error").textContent = "";
  start();
});
start();
health();
setInterval(health, 5000);
