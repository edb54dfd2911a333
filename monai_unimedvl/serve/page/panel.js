// SPDX-License-Identifier: Apache-2.0
// What the page does: open images, ask, segment, edit, draw, and hand results out. Talks to ../ of this server only.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { study: null, busy: 0, job: null, mask: null };
const viewer = new Viewer($("canvas"));

// ---- the server

async function call(path, { method = "GET", json, form } = {}) {
  const headers = {};
  const key = sessionStorage.getItem("unimedvl-key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(`../${path}`, { method, headers, body: form ?? (json === undefined ? undefined : JSON.stringify(json)) });
  } catch {
    throw new Error("The server does not answer: is it still running?");
  }
  if (answer.status === 401) {
    await askKey();
    return call(path, { method, json, form });
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Error(said?.error?.message ?? `The server answered ${answer.status}.`);
  }
  return answer;
}

function askKey() {
  sessionStorage.removeItem("unimedvl-key");
  const dialog = $("key-dialog");
  $("key").value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      if ($("key").value) sessionStorage.setItem("unimedvl-key", $("key").value);
      done();
    }, { once: true });
  });
}

// ---- telling what goes on

function alert_(text) {
  $("alert").textContent = text ?? "";
  $("alert").hidden = !text;
  if (text) $("alert").scrollIntoView({ block: "nearest" });
}

function refresh() {
  for (const button of document.querySelectorAll("[data-needs-image]")) button.disabled = !state.study || state.busy > 0;
  $("pane-draw").querySelector("button").disabled = state.busy > 0;
  $("whole").disabled ||= state.study?.kind !== "volume" || state.job !== null;
  $("browse").disabled = $("sample").disabled = $("modality").disabled = state.busy > 0;
}

// Run something that takes a while: one at a time, with words about it, errors shown in one place.
async function during(words, work) {
  if (state.busy) return;
  state.busy += 1;
  alert_();
  $("loading").textContent = words;
  $("loading").hidden = false;
  refresh();
  try {
    await work();
  } catch (error) {
    alert_(error.message);
  } finally {
    state.busy -= 1;
    $("loading").hidden = true;
    refresh();
  }
}

// ---- opening

async function show(study) {
  const bytes = await (await call(`images/${study.id}/volume`)).arrayBuffer();
  const old = state.study;
  state.study = study;
  $("empty").hidden = true;
  unmask();
  await viewer.open(study, bytes);
  if (old && old.id !== study.id) call(`images/${old.id}`, { method: "DELETE" }).catch(() => {});
  const [x, y, z] = study.shape;
  const size = study.kind === "volume" ? `${x} × ${y} × ${z}` : study.kind === "frames" ? `${y} × ${x}, ${z} frames` : `${y} × ${x}`;
  $("title").textContent = study.label || `Your ${study.kind === "volume" ? "volume" : study.kind === "frames" ? "frames" : "picture"} (${size})`;
  $("planes").hidden = study.planes.length < 2;
  if (study.planes.length === 1) turn(study.planes[0]);
  $("reset").hidden = false;
  $("modality").value = study.modality;
  $("reading").hidden = false;
  $("note").textContent = study.note ? `${study.note} Change it above if that is wrong.` : "";
  $("note").hidden = !study.note;
  moved();
}

function open(files) {
  if (!files.length) return;
  $("sample").value = "";
  during("Reading …", async () => {
    const form = new FormData();
    // names of files are often those of patients: only their endings leave this page
    [...files].forEach((file, n) => form.append("files", file, `image${n}${/(\.nii)?\.[a-z0-9]+$/i.exec(file.name)?.[0] ?? ""}`));
    await show(await (await call("images", { method: "POST", form })).json());
  });
  $("file").value = "";
}

$("browse").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => open($("file").files));
$("sample").addEventListener("change", () => {
  const number = $("sample").value;
  if (number !== "") during("Opening …", async () => show(await (await call(`samples/${number}`, { method: "POST" })).json()));
});
$("modality").addEventListener("change", () => during("Reading …", async () => {
  const id = state.study.id;
  await show(await (await call(`images/${id}`, { method: "PUT", json: { modality: $("modality").value } })).json());
}));

const stage = $("stage");
for (const kind of ["dragenter", "dragover"]) stage.addEventListener(kind, (event) => { event.preventDefault(); stage.classList.add("over"); });
for (const kind of ["dragleave", "drop"]) stage.addEventListener(kind, () => stage.classList.remove("over"));
stage.addEventListener("drop", (event) => { event.preventDefault(); open(event.dataTransfer.files); });

// ---- looking

function moved() {
  if (!state.study) return;
  $("slices").hidden = viewer.count < 2;
  $("slice").max = viewer.count - 1;
  $("slice").value = viewer.index;
  $("where").textContent = viewer.words;
  $("slice").setAttribute("aria-valuetext", viewer.words);
}
viewer.moved = moved;
$("slice").addEventListener("input", () => { viewer.index = Number($("slice").value); });
$("reset").addEventListener("click", () => viewer.reset());
$("canvas").addEventListener("keydown", (event) => {
  const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
  if (!step || !state.study) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  viewer.index += step;
}, { capture: true });

function turn(plane) {
  for (const button of $("planes").children) {
    const on = button.dataset.plane === plane;
    button.setAttribute("aria-checked", String(on));
    button.tabIndex = on ? 0 : -1;
  }
  if (viewer.plane !== plane) viewer.turn(plane);
}
$("planes").addEventListener("click", (event) => { if (event.target.dataset.plane) turn(event.target.dataset.plane); });
roving($("planes"), (button) => { turn(button.dataset.plane); });

// Arrow keys move within a group of buttons of which one is chosen.
function roving(group, choose) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const all = [...group.children];
    const here = all.indexOf(document.activeElement);
    if (!step || here < 0) return;
    event.preventDefault();
    const next = all[(here + step + all.length) % all.length];
    choose(next);
    next.focus();
  });
}

// ---- the mask over the image

function unmask() {
  viewer.unmask();
  state.mask = null;
  $("overlay").hidden = true;
}

async function mask(made) {
  const bytes = await (await call(`results/${made.overlay}`)).arrayBuffer();
  await viewer.mask(bytes, made.legend, $("opacity").value / 100);
  state.mask = made;
  $("overlay-title").textContent = `Mask of ${made.where}`;
  $("legend").replaceChildren(...made.legend.map((one) => {
    const item = document.createElement("li");
    const amount = one.ml === null ? `${one.voxels.toLocaleString("en")} px` : `${one.ml.toFixed(2)} ml`;
    item.innerHTML = '<svg viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" rx="2"/></svg><span></span><span class="quiet"></span>';
    item.querySelector("rect").setAttribute("fill", `rgb(${one.colour.join(",")})`);
    item.children[1].textContent = one.name;
    item.children[2].textContent = one.voxels ? amount : "none";
    return item;
  }));
  $("overlay").hidden = false;
  toggle(true);
}

function toggle(shown) {
  $("toggle").setAttribute("aria-pressed", String(shown));
  $("toggle").textContent = shown ? "Hide" : "Show";
  viewer.opacity = shown ? $("opacity").value / 100 : 0;
}
$("toggle").addEventListener("click", () => toggle($("toggle").getAttribute("aria-pressed") !== "true"));
$("opacity").addEventListener("input", () => toggle(true));

// ---- what to do

const tabs = [...document.querySelectorAll("[role=tab]")];
function choose(tab) {
  for (const one of tabs) {
    const on = one === tab;
    one.setAttribute("aria-selected", String(on));
    one.tabIndex = on ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !on;
  }
}
for (const tab of tabs) tab.addEventListener("click", () => choose(tab));
roving(tabs[0].parentElement, choose);

const here = () => ({ plane: viewer.plane, mm: viewer.mm });
const label = (task) => [...$("mask").options, ...$("edit").options].find((one) => one.value === task)?.textContent ?? task;
const submit = (id, work) => $(id).addEventListener("submit", (event) => { event.preventDefault(); work(); });

submit("pane-ask", () => {
  const question = $("question").value.trim() || $("question").placeholder;
  during("Asking …", async () => {
    const made = await (await call(`images/${state.study.id}/ask`, { method: "POST", json: { ...here(), question } })).json();
    const sure = made.probability === null ? "" : ` · ${Math.round(made.probability * 100)} % per word by the model itself, not calibrated`;
    const cut = made.stop_reason === "end" ? "" : " · cut short";
    add({ ...made, what: question, answer: made.answer || "(nothing)", details: `${made.where}${sure}${cut}` });
  });
});
for (const id of ["question", "prompt", "instruction"]) {
  $(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); event.target.form.requestSubmit(); }
  });
}

function segmented(made) {
  const found = made.legend.filter((one) => one.voxels).map((one) => one.name);
  add({ ...made, what: label(made.task), answer: found.length ? found.join(", ") : "nothing found", details: made.where });
}

submit("pane-segment", () => during("Segmenting …", async () => {
  const json = { ...here(), task: $("mask").value };
  const made = await (await call(`images/${state.study.id}/segment`, { method: "POST", json })).json();
  await mask(made);
  segmented(made);
}));

$("whole").addEventListener("click", async () => {
  const study = state.study;
  alert_();
  try {
    const json = { ...here(), task: $("mask").value, whole: true };
    let job = (await (await call(`images/${study.id}/segment`, { method: "POST", json })).json()).job;
    state.job = job.id;
    $("job").hidden = false;
    refresh();
    while (job.state === "running") {
      $("progress").max = job.total;
      $("progress").value = job.done;
      $("progress-text").textContent = `${job.done} of ${job.total} slices`;
      await new Promise((done) => setTimeout(done, 400));
      job = await (await call(`jobs/${job.id}`)).json();
    }
    if (job.error) throw new Error(job.error);
    if (job.result) {
      segmented(job.result);
      if (state.study?.id === study.id) await mask(job.result);
    }
  } catch (error) {
    alert_(error.message);
  } finally {
    state.job = null;
    $("job").hidden = true;
    refresh();
  }
});
$("stop").addEventListener("click", () => call(`jobs/${state.job}`, { method: "DELETE" }).catch((error) => alert_(error.message)));

$("edit").addEventListener("change", () => { $("own-instruction").hidden = $("edit").value !== ""; });
submit("pane-edit", () => {
  const task = $("edit").value;
  const instruction = $("instruction").value.trim();
  if (!task && !instruction) return alert_("Write an instruction, or choose one from the list.");
  during("Drawing …", async () => {
    const json = { ...here(), ...(task ? { task } : { instruction }) };
    const made = await (await call(`images/${state.study.id}/edit`, { method: "POST", json })).json();
    await add({ ...made, what: task ? label(task) : instruction, details: made.where, picture: true });
  });
});

submit("pane-draw", () => {
  const prompt = $("prompt").value.trim();
  if (!prompt) return alert_("Write what to draw.");
  if (!$("seed").checkValidity()) return alert_("The seed is a whole number from 0 on.");
  during("Drawing …", async () => {
    const seed = Number($("seed").value);
    const made = await (await call("draw", { method: "POST", json: { prompt, seed } })).json();
    await add({ ...made, what: prompt, details: `drawn from words, seed ${seed}`, picture: true });
    $("seed").value = seed + 1;
  });
});

// ---- results

async function add({ what, answer = "", details, result, overlay, name, picture, plane, mm, legend, task, where }) {
  const item = $("result-template").content.firstElementChild.cloneNode(true);
  item.querySelector(".what").textContent = what;
  item.querySelector(".answer").textContent = answer;
  item.querySelector(".details").textContent = details;
  const actions = item.querySelector(".actions");
  const action = (text, work) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => work().catch((error) => alert_(error.message)));
    actions.append(button);
  };
  const study = state.study?.id;
  if (mm && state.study.kind === "volume") action("Go to slice", async () => {
    if (state.study.id === study) { turn(plane); viewer.goto(plane, mm); } else alert_("Another image is open.");
  });
  if (legend) action("Show overlay", async () => {
    if (state.study.id === study) await mask({ overlay, legend, task, where }); else alert_("Another image is open.");
  });
  action("Download", () => download(`results/${result}`, name));
  if (!name.endsWith(".json")) action("Manifest", () => download(`results/${result}/manifest`, `${name}.json`));
  if (picture) {
    const image = item.querySelector("img");
    image.src = URL.createObjectURL(await (await call(`results/${result}`)).blob());
    image.alt = `Synthetic image: ${what}`;
    image.hidden = false;
  }
  $("none").hidden = true;
  $("results").prepend(item);
}

async function download(path, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await (await call(path)).blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- the start

// "Segment the bone." -> "Bone": what a list of things to segment says.
function what(instruction) {
  const short = instruction.replace(/\.$/, "").replace(/^Segment (the )?/, "");
  return short[0].toUpperCase() + short.slice(1);
}

function options(select, entries) {
  for (const [value, text] of entries) select.add(new Option(text, value));
}

async function start() {
  const info = await (await call("info")).json();
  $("model").textContent = `${info.model} · ${info.weights}`;
  options($("sample"), info.samples.map((name, n) => [n, name]));
  options($("modality"), info.modalities.map((name) => [name, name]));
  options($("mask"), info.masks.map((one) => [one.task, what(one.label)]));
  options($("edit"), [...info.edits.map((one) => [one.task, what(one.label)]), ["", "Own words …"]]);
  if (!info.samples.length) $("sample").options[0].textContent = "No samples on this server";
  $("file").accept = info.endings.join(",");
  $("prompt").value = info.example;
  $("suggestions").replaceChildren(...info.questions.map((text) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => { $("question").value = text; $("question").focus(); });
    return button;
  }));
}

refresh();
start().catch((error) => alert_(error.message));
