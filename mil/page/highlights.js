// Four short lists of videos worth a look.

const SHORT = 5;
const HIGHLIGHTS = [
  ["Best ranked", "highest AUC inside the video", "auc", true, (i) => known(ofVideo("auc", i)), number],
  ["Worst ranked", "lowest AUC inside the video", "auc", false, (i) => known(ofVideo("auc", i)), number],
  [
    "Most missed",
    "anomalous frames below the threshold",
    "missed",
    true,
    (i) => ofVideo("missed", i) > 0,
    (x) => percent(x, 0),
  ],
  [
    "False alarms",
    "frames of normal videos at or above the threshold",
    "alarms",
    true,
    (i) => !data.videos[i].label && ofVideo("alarms", i) > 0,
    (x) => percent(x, 0),
  ],
];

function drawHighlights() {
  const root = byId("highlights");
  const draw = () => {
    root.querySelectorAll("canvas").forEach(dropSpark);
    root.replaceChildren(
      ...HIGHLIGHTS.map(([title, sentence, key, down, isIn, show]) => {
        const found = data.videos.map((_, i) => i).filter(isIn);
        const rows = sorted(found, (i) => ofVideo(key, i), down).slice(0, SHORT);
        return h(
          "div",
          {},
          h("h3", {}, title, h("small", {}, sentence)),
          rows.length
            ? h(
                "ol",
                { class: "short" },
                rows.map((i) =>
                  h(
                    "li",
                    {},
                    videoLink(i, nameOf(data.videos[i]), spark(i), h("b", { class: "num" }, show(ofVideo(key, i)))),
                  ),
                ),
              )
            : h("p", { class: "none" }, "none"),
        );
      }),
    );
  };
  on("runs", draw);
  on("focus", draw);
}
