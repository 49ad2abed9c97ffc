// Brings the page to life: what the address says is shown, and stays in step with it.

let overviewScroll = 0;
let anchor = null; // of the overview, when a link to it was followed from a video

function leaveVideo() {
  location.hash = hashOf(null);
}

function showOverview() {
  if (byId("overview").hidden === false) return;
  const last = view?.index;
  closeVideo();
  byId("video").hidden = true;
  byId("overview").hidden = false;
  document.title = `${data.title} · wsvad report`;
  window.scrollTo(0, overviewScroll);
  document.querySelector(`#video-list [data-index="${last}"]`)?.focus({ preventScroll: true });
  redrawSparks();
}

function follow() {
  const wanted = readHash();
  if (wanted.runs?.length) chooseRuns(wanted.runs);
  const index = videoIndex.get(wanted.video);
  if (index === undefined) {
    showOverview();
    byId("notice").hidden = wanted.video === null;
    byId("notice").textContent = wanted.video === null ? "" : `This report has no video called “${wanted.video}”.`;
    if (anchor) byId(anchor).scrollIntoView();
    anchor = null;
    return;
  }
  byId("notice").hidden = true;
  if (!view) overviewScroll = window.scrollY;
  const video = data.videos[index];
  const frame = wanted.frame ?? (wanted.seconds ?? 0) * (video.fps ?? ASSUMED_FPS);
  if (view?.index === index) seek(frame);
  else openVideo(index, frame);
  setHash(hashOf(video, frame));
}

function drawChips() {
  byId("chips").replaceChildren(
    ...state.runs.map((run) =>
      h(
        "li",
        {},
        swatch(run),
        h("span", { class: "name" }, data.runs[run].name),
        state.runs.length > 1 &&
          h(
            "button",
            {
              "aria-label": `Hide ${data.runs[run].name}`,
              title: "Hide this run",
              onclick: () => toggleRun(run, false),
            },
            "×",
          ),
      ),
    ),
  );
}

function restyle() {
  colours = null;
  redrawSparks();
  view?.timeline.drawNow();
  byId("theme").setAttribute("aria-pressed", String(document.documentElement.dataset.theme === "dark"));
}

function start() {
  drawSummary();
  drawCurves();
  drawTraining();
  drawHistograms();
  drawClasses();
  drawHighlights();
  drawList();
  on("runs", drawChips);
  on("runs", redrawSparks);
  on("runs", drawVideoRuns);
  chooseRuns(readHash().runs?.length ? readHash().runs : defaultRuns());

  const root = document.documentElement;
  root.addEventListener("theme", restyle);
  byId("theme").addEventListener("click", () => root.dispatchEvent(new Event("toggle-theme")));
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("main").focus();
  });
  byId("back").addEventListener("click", (event) => {
    event.preventDefault();
    leaveVideo();
  });
  for (const link of document.querySelectorAll(".bar a")) {
    link.addEventListener("click", () => (anchor = view ? link.hash.slice(1) : null));
  }
  byId("previous").addEventListener("click", () => stepVideo(-1));
  byId("next").addEventListener("click", () => stepVideo(1));
  byId("play").addEventListener("click", () => view.player.toggle());
  byId("zoom-in").addEventListener("click", () => view.timeline.zoom(1.6));
  byId("zoom-out").addEventListener("click", () => view.timeline.zoom(1 / 1.6));
  byId("zoom-fit").addEventListener("click", () => view.timeline.fit());
  byId("next-event").addEventListener("click", () => jumpToEvent(1));
  byId("scale-own").addEventListener("click", () => {
    view.timeline.share(!view.timeline.isShared());
    byId("scale-own").setAttribute("aria-pressed", String(!view.timeline.isShared()));
  });
  document.addEventListener("keydown", pressed);
  window.addEventListener("hashchange", follow);
  window.addEventListener("resize", redrawSparks);
  // paper is white, whatever the screen is
  let before = null;
  window.addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    restyle();
    document.querySelectorAll("#highlights canvas").forEach(drawSpark);
  });
  window.addEventListener("afterprint", () => {
    root.dataset.theme = before;
    restyle();
  });
  restyle();
  follow();
  on("runs", () => setHash(view ? hashOf(view.video, view.player.frame()) : hashOf(null)));
}

// For the console and for tests: numbers behind what is drawn.
window.wsvad = {
  // the score drawn for a video (by id) in a run (by index) at a frame
  scoreAt: (id, run, frame) => scoreAt(data.videos[videoIndex.get(id)], run, frame),
  // runs drawn, by index
  runs: () => [...state.runs],
  // where the open timeline draws: frames [from, to) between x left and right, each run's range between y bottom and top
  timeline: () => view?.timeline.geometry() ?? null,
  // canvases in the lists of videos that hold pixels now
  sparks: () => drawnSparks.size,
  // clip boundaries of a video (by id): [start, stop) of clip i
  clip: (id, i) => [clipStart(data.videos[videoIndex.get(id)], i), clipStop(data.videos[videoIndex.get(id)], i)],
};

start();
