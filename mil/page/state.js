// What the reader has chosen: the runs that are drawn, the one that the lists of videos go by, and the address that says
// so. #video=ID&t=SECONDS&runs=0,3 opens a video (f=FRAME where its frame rate is not known); anything else is the
// overview. Back and forward work.

const state = { runs: [], focus: 0 };
const slots = new Map(); // run -> colour, kept for as long as the run is shown
const listeners = {};

const on = (event, f) => (listeners[event] ??= []).push(f);
const emit = (event) => (listeners[event] ?? []).forEach((f) => f());

const defaultRuns = () =>
  data.groups
    .slice(0, 3)
    .map((group) => group.runs[0])
    .sort((a, b) => a - b);
const sameRuns = (a, b) => a.length === b.length && a.every((run, i) => run === b[i]);

// Shows these runs; without any it keeps those that are shown.
function chooseRuns(wanted) {
  const runs = [...new Set(wanted)].filter((run) => data.runs[run]).sort((a, b) => a - b);
  if (!runs.length) announce("At least one run stays shown");
  if (runs.length && !sameRuns(runs, state.runs)) {
    state.runs = runs;
    for (const run of [...slots.keys()]) if (!runs.includes(run)) slots.delete(run);
    for (const run of runs) {
      let slot = 0;
      while ([...slots.values()].includes(slot)) slot += 1;
      if (!slots.has(run)) slots.set(run, slot);
    }
    if (!runs.includes(state.focus)) state.focus = runs[0];
  }
  emit("runs"); // even without a change: a checkbox may say otherwise
}

function toggleRun(run, shown) {
  chooseRuns(shown ? [...state.runs, run] : state.runs.filter((other) => other !== run));
}

function focusOn(run) {
  state.focus = run;
  emit("focus");
}

const COLOURS = 8;
const slotOf = (run) => slots.get(run) ?? 0;
const runClass = (run) => `run run-${slotOf(run) % COLOURS}`;
// beyond the colours there are, lines differ by their dashes
const dashOf = (run) => [[], [7, 3], [2, 2]][Math.floor(slotOf(run) / COLOURS) % 3];

const swatch = (run) => h("span", { class: `swatch ${runClass(run)}`, "aria-hidden": "true" });

let colours = null;

// A colour of the style sheet, for canvases.
function colour(name) {
  colours ??= getComputedStyle(document.documentElement);
  return colours.getPropertyValue(`--${name}`).trim();
}

const runColour = (run) => colour(`run-${slotOf(run) % COLOURS}`);

function readHash() {
  const found = {};
  for (const part of location.hash.slice(1).split("&")) {
    const at = part.indexOf("=");
    if (at < 1) continue;
    try {
      found[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1));
    } catch {
      // a broken link: that part of it says nothing
    }
  }
  const time = (text) => (text !== undefined && Number.isFinite(Number(text)) ? Math.max(Number(text), 0) : null);
  return {
    video: found.video ?? null,
    seconds: time(found.t),
    frame: time(found.f),
    runs:
      found.runs
        ?.split(",")
        .filter((text) => /^\d+$/.test(text))
        .map(Number)
        .filter((run) => run < data.runs.length) ?? null,
  };
}

function hashOf(video, frame) {
  const parts = [];
  if (video) {
    parts.push(`video=${encodeURIComponent(video.id)}`);
    if (frame > 0) parts.push(video.fps ? `t=${+(frame / video.fps).toFixed(3)}` : `f=${Math.floor(frame)}`);
  }
  if (!sameRuns(state.runs, defaultRuns())) parts.push(`runs=${state.runs.join(",")}`);
  return parts.length ? `#${parts.join("&")}` : "#";
}

function setHash(hash) {
  if (hash === "#" && !location.hash.includes("=")) return; // an anchor of the overview stays
  if (hash !== location.hash) history.replaceState(null, "", hash);
}
