// What stands behind a group's numbers: how its runs were made, and what else was measured.

const FURTHER = [
  ["ano_auc", "AUC, anomalous videos", number],
  ["ano_ap", "AP, anomalous videos", number],
  ["video_auc", "video-level AUC", number],
  ["far", "false alarms", percent],
  ["eer", "EER", number],
  ["best_f1", "best F1", number],
  ["score_gap", "score gap", number],
  ["events_detected", "events found", percent],
  ["map_iou", "mAP, IoU 0.1–0.5", number],
];

// Narrow screens leave columns out; a cell that spans more than there are would widen the table.
const narrow = matchMedia("(max-width: 860px)");

const distinct = (values) => [...new Set(values.filter(known))];

// What all runs of a group have been made with, and their further numbers.
function detailRow(group) {
  const runs = group.runs.map((i) => data.runs[i]);
  const facts = [
    ["Selected by", distinct(runs.map((run) => run.selected_by))],
    ["Step", [distinct(runs.map((run) => whole(run.step))).join(", ")]],
    ["Features", distinct(runs.flatMap((run) => run.specs.map((spec) => `${spec.id}: ${spec.text}`)))],
    ["Crops", distinct(runs.map((run) => run.crops))],
    ["Smoothing", distinct(runs.map((run) => (run.smooth > 1 ? `mean over ${run.smooth} clips` : "none")))],
    ["Threshold", distinct(runs.map((run) => run.threshold_about))],
    ["Warnings", distinct(runs.flatMap((run) => run.warnings))],
  ];
  const further = FURTHER.filter(([key]) => runs.some((run) => known(run.numbers[key])));
  const title = (key, name) => (key === "far" ? `${name} at ${number(runs[0].numbers.far_threshold, 2)}` : name);
  return h(
    "tr",
    { class: "detail" },
    h(
      "td",
      { colspan: narrow.matches ? 4 : 7 },
      h(
        "dl",
        { class: "facts" },
        facts
          .filter(([, lines]) => lines.length)
          .map(([name, lines]) =>
            h(
              "div",
              {},
              h("dt", {}, name),
              lines.map((line) => h("dd", {}, line)),
            ),
          ),
      ),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "further" },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "col" }, "Run"),
              further.map(([key, name]) => h("th", { scope: "col", class: "num" }, title(key, name))),
            ),
          ),
          h(
            "tbody",
            {},
            runs.map((run) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, run.name),
                further.map(([key, , show]) => h("td", { class: "num" }, show(run.numbers[key]))),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}
