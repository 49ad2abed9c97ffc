// Beside the video: what each run says at the cursor, and where the events are.

const timeText = (video, frame) => (video.fps ? clock(frame / video.fps, 2) : `frame ${whole(Math.floor(frame))}`);
const shownFrame = (video, frame) => Math.min(Math.floor(frame), video.frames - 1);

function truthText(video, frame) {
  const kinds = eventsAt(video, frame).map(([, , kind]) => kind || "anomalous");
  return kinds.length ? `inside ${kinds.join(", ")}` : "normal here";
}

// Everything at one frame in words, for those who listen.
function spoken(video, frame) {
  const at = shownFrame(video, frame);
  const runs = state.runs.map((run) => {
    const above = isAbove(video, run, at);
    return `${data.runs[run].name} ${number(scoreAt(video, run, at), 2)}${above === null ? "" : above ? ", above its threshold" : ""}`;
  });
  return `${timeText(video, frame)}, frame ${at}, ${truthText(video, at)}; ${runs.join("; ")}`;
}

function runTable(video, index) {
  const cells = new Map();
  const row = (run) => {
    const own = data.runs[run].per_video;
    const now = h("td", { class: "num now", "data-title": "score" });
    const verdict = h("td", { class: "verdict" });
    cells.set(run, [now, verdict]);
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, swatch(run), h("span", { class: "name" }, data.runs[run].name)),
      now,
      verdict,
      h("td", { class: "num", "data-title": "threshold" }, score(thresholdOf(run))),
      h("td", { class: "num", "data-title": "AUC" }, number(own.auc[index])),
      h("td", { class: "num", "data-title": "peak" }, number(own.peak[index])),
      h("td", { class: "num", "data-title": "missed" }, percent(own.missed[index], 0)),
      h("td", { class: "num", "data-title": "alarms" }, percent(own.alarms[index], 0)),
    );
  };
  const titles = [
    ["Run", ""],
    ["Score", "num"],
    ["", ""],
    ["Threshold", "num"],
    ["AUC here", "num"],
    ["Peak", "num"],
    ["Missed", "num"],
    ["Alarms", "num"],
  ];
  const table = h(
    "table",
    { class: "readout" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        titles.map(([title, kind]) => h("th", { scope: "col", class: kind }, title)),
      ),
    ),
    h("tbody", {}, state.runs.map(row)),
  );
  const update = (frame) => {
    for (const [run, [now, verdict]] of cells) {
      const above = isAbove(video, run, frame);
      now.textContent = number(scoreAt(video, run, frame));
      verdict.textContent = above === null ? "" : above ? "▲ above" : "below";
      verdict.classList.toggle("above", above === true);
    }
  };
  return [table, update];
}

function eventList(video, seek) {
  if (!video.events.length)
    return h(
      "p",
      { class: "none" },
      video.label ? "No annotated events." : "A normal video: every alarm is a false one.",
    );
  const text = ([start, stop]) =>
    video.fps ? `${clock(start / video.fps)} – ${clock(stop / video.fps)}` : `${whole(start)} – ${whole(stop)}`;
  return h(
    "ul",
    { class: "events" },
    video.events.map((event) =>
      h(
        "li",
        {},
        h(
          "button",
          { onclick: () => seek(event[0]) },
          h("b", {}, event[2] || "anomalous"),
          " ",
          h("span", { class: "num" }, text(event)),
        ),
      ),
    ),
  );
}
