// All videos: searched, filtered and sorted; numbers and scores are those of one run.

const filter = { text: "", kind: "all", order: { key: "auc", down: false } };
let listed = data.videos.map((_, i) => i); // what n and p walk through

const ofVideo = (key, i) => data.runs[state.focus].per_video[key][i];
const lengthText = (video) => (video.fps ? clock(video.frames / video.fps, 0) : `${whole(video.frames)} fr.`);

function videoLink(i, ...content) {
  const { id } = data.videos[i];
  return h("a", { href: `#video=${encodeURIComponent(id)}`, class: "video-row", "data-index": i }, ...content);
}

function nameOf(video) {
  const { id } = video;
  const letters = [...id]; // whole ones: not half an emoji
  // long names differ at their ends: the middle gives way
  return h(
    "span",
    { class: "name two", title: id, dir: "auto" },
    h("span", {}, letters.slice(0, -12).join("")),
    h("span", {}, letters.slice(-12).join("")),
  );
}

const labelBadge = (video) =>
  video.label
    ? badge("truth", video.classes.join(", ") || "anomalous", "anomalous video")
    : badge("plain", "normal", "normal video");

const COLUMNS = [
  ["id", "Video", "", (i) => data.videos[i].id],
  ["label", "Label", "", (i) => data.videos[i].classes.join(", ") || (data.videos[i].label ? "anomalous" : "normal")],
  [
    "frames",
    "Length",
    "num",
    (i) => (data.videos[i].fps ? data.videos[i].frames / data.videos[i].fps : data.videos[i].frames / 25),
  ],
  ["auc", "AUC", "num", (i) => ofVideo("auc", i)],
  ["peak", "Peak", "num", (i) => ofVideo("peak", i)],
  ["missed", "Missed", "num", (i) => ofVideo("missed", i)],
  ["alarms", "Alarms", "num", (i) => ofVideo("alarms", i)],
];

function listRow(i) {
  const video = data.videos[i];
  const numbers = ["auc", "peak", "missed", "alarms"].map((key) => h("span", { class: "num", "data-of": key }));
  return h(
    "li",
    {},
    videoLink(
      i,
      nameOf(video),
      labelBadge(video),
      h("span", { class: "num length" }, lengthText(video)),
      spark(i),
      numbers,
    ),
  );
}

function fillRow(row, i) {
  for (const cell of row.querySelectorAll("[data-of]")) {
    const value = ofVideo(cell.dataset.of, i);
    cell.textContent = cell.dataset.of === "missed" || cell.dataset.of === "alarms" ? percent(value, 0) : number(value);
  }
}

function matches(video) {
  const { text, kind } = filter;
  if (kind === "anomalous" || kind === "normal") {
    if (Boolean(video.label) !== (kind === "anomalous")) return false;
  } else if (kind !== "all" && !video.classes.includes(kind.slice("class:".length))) return false;
  return video.id.toLowerCase().includes(text.toLowerCase());
}

function drawList() {
  const list = byId("video-list");
  const rows = data.videos.map((_, i) => listRow(i));
  const numbers = () => rows.forEach(fillRow);
  let all = listed; // in order, whether shown or not: to filter moves no row
  const arrange = () => {
    const { key, down } = filter.order;
    all = sorted([...rows.keys()], COLUMNS.find(([name]) => name === key)[3], down);
    list.append(...all.map((i) => rows[i]));
    list.dataset.key = key;
    byId("video-order").value = `${key} ${down ? "down" : "up"}`;
    sift();
  };
  const sift = () => {
    listed = all.filter((i) => matches(data.videos[i]));
    const shown = new Set(listed);
    rows.forEach((row, i) => (row.hidden = !shown.has(i)));
    byId("video-count").textContent =
      listed.length === rows.length
        ? plural(rows.length, "video")
        : `${whole(listed.length)} of ${plural(rows.length, "video")}`;
    byId("video-none").hidden = listed.length > 0;
  };
  const sortBy = (key, down) => {
    filter.order = { key, down };
    arrange();
    heads();
  };
  const heads = () => {
    const { order } = filter;
    const click = (key) => {
      sortBy(key, order.key === key ? !order.down : ["peak", "missed", "alarms"].includes(key));
      byId("list-head").querySelector(`[data-key=${key}]`).focus();
    };
    const cells = COLUMNS.map(([key, title, kind]) => sortHead("span", key, title, kind, order, click));
    cells.forEach((cell) => cell.removeAttribute("scope"));
    cells.splice(3, 0, h("span", {}, "Score"));
    byId("list-head").replaceChildren(...cells);
  };
  byId("video-order").append(
    ...COLUMNS.flatMap(([key, title]) => [
      h("option", { value: `${key} up` }, `${title} ↑`),
      h("option", { value: `${key} down` }, `${title} ↓`),
    ]),
  );
  const kinds = [...new Set(data.videos.flatMap((video) => video.classes))].sort();
  byId("video-kind").append(...kinds.map((kind) => h("option", { value: `class:${kind}` }, kind)));
  byId("video-order").addEventListener("change", (event) => {
    const [key, way] = event.target.value.split(" ");
    sortBy(key, way === "down");
  });
  byId("video-search").addEventListener("input", (event) => {
    filter.text = event.target.value;
    sift();
  });
  byId("video-kind").addEventListener("change", (event) => {
    filter.kind = event.target.value;
    sift();
  });
  byId("video-run").addEventListener("change", (event) => focusOn(Number(event.target.value)));
  const refresh = () => {
    byId("video-run").replaceChildren(
      ...state.runs.map((run) => h("option", { value: run, selected: run === state.focus }, data.runs[run].name)),
    );
    numbers();
    arrange();
    heads();
    redrawSparks();
  };
  on("runs", refresh);
  on("focus", refresh);
}
