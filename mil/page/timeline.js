// The large timeline: scores of the runs shown, ground truth, threshold, clips, and a cursor. Frames are its unit.

const PLACE = { left: 40, right: 10, top: 26, bottom: 34 };
const FEWEST = 12; // frames in view at the highest zoom
const CLIPS_FROM = 5; // pixels between clip boundaries before they are drawn

// {canvas, overview}: the large canvas and the small one of the whole video. onSeek(frame) when the reader picks one.
function timelineOf(video, canvas, overview, onView) {
  let from = 0;
  let to = video.frames;
  let cursor = 0;
  let pointed = null;
  let queued = false;
  let changed = true; // more than the cursor
  const still = [h("canvas"), h("canvas")]; // both without the cursor, which moves with every frame that plays
  let shared = state.runs.every(isBounded) || state.runs.length === 1;

  const rangeFor = (run) => (shared ? rangeOf(state.runs) : ownRange(run));
  const areaOf = () => ({
    left: PLACE.left,
    right: canvas.clientWidth - PLACE.right,
    top: PLACE.top,
    bottom: canvas.clientHeight - PLACE.bottom,
    from,
    to,
  });
  const wholeArea = () => ({
    left: PLACE.left,
    right: overview.clientWidth - PLACE.right,
    top: 3,
    bottom: overview.clientHeight - 3,
    from: 0,
    to: video.frames,
  });

  const draw = () => {
    queued = false;
    if (!canvas.clientWidth) return;
    if (changed) drawStill();
    changed = false;
    const context = copied(canvas, still[0]);
    const area = areaOf();
    drawClipHere(context, area, video, cursor);
    if (pointed !== null) drawCursor(context, area, pointed, "faint-ink", false);
    drawCursor(context, area, cursor, "ink", true);
    drawCursor(copied(overview, still[1]), wholeArea(), cursor, "ink", false);
  };

  const drawStill = () => {
    const context = sized(still[0], canvas.clientWidth, canvas.clientHeight);
    const area = areaOf();
    context.font = "11px " + getComputedStyle(canvas).fontFamily;
    drawGrid(context, area, video, shared || state.runs.length === 1 ? rangeFor(state.runs[0]) : null);
    drawTruth(context, area, video, 0.2);
    drawEvents(context, area, video);
    drawClips(context, area, video);
    const focus = state.runs.includes(state.focus) ? state.focus : state.runs[0];
    const thresholds = state.runs.length === 1 || !shared ? [focus] : state.runs;
    for (const run of thresholds)
      if (known(thresholdOf(run))) drawThreshold(context, area, run, yOf(area, thresholdOf(run), rangeFor(run)));
    for (const run of state.runs.filter((other) => other !== focus))
      drawSteps(context, area, video, run, rangeFor(run), 1.5);
    drawSteps(context, area, video, focus, rangeFor(focus), 2);
    drawOverview();
  };

  const drawOverview = () => {
    const context = sized(still[1], overview.clientWidth, overview.clientHeight);
    const area = wholeArea();
    drawTruth(context, { ...area, top: 0, bottom: overview.clientHeight }, video, 0.28);
    drawSteps(context, area, video, state.focus, ownRange(state.focus), 1);
    if (!isZoomed()) return;
    context.fillStyle = colour("veil");
    const [a, b] = [xOf(area, from), xOf(area, to)];
    context.fillRect(area.left, 0, a - area.left, overview.clientHeight);
    context.fillRect(b, 0, area.right - b, overview.clientHeight);
    context.strokeStyle = colour("soft");
    context.strokeRect(Math.round(a) + 0.5, 0.5, Math.max(Math.round(b - a) - 1, 2), overview.clientHeight - 1);
  };

  const later = () => {
    if (queued) return;
    queued = true;
    requestAnimationFrame(draw);
  };
  const laterAll = () => {
    changed = true;
    later();
  };
  const isZoomed = () => to - from < video.frames - 0.5;
  const look = (start, length) => {
    const span = Math.min(Math.max(length, Math.min(FEWEST, video.frames)), video.frames);
    from = Math.min(Math.max(start, 0), video.frames - span);
    to = from + span;
    onView?.();
    laterAll();
  };
  const zoom = (factor, around = cursor) => {
    const centre = around >= from && around <= to ? around : (from + to) / 2;
    const span = Math.min(Math.max((to - from) / factor, Math.min(FEWEST, video.frames)), video.frames);
    look(centre - ((centre - from) / (to - from)) * span, span);
  };
  return {
    draw: laterAll,
    drawNow() {
      changed = true;
      draw();
    },
    zoom,
    look,
    isZoomed,
    pan: (frames) => look(from + frames, to - from),
    fit: () => look(0, video.frames),
    frameAtX: (x) => Math.min(Math.max(frameOf(areaOf(), x), 0), video.frames),
    overviewFrameAtX: (x) => Math.min(Math.max(frameOf(wholeArea(), x), 0), video.frames),
    point(frame) {
      pointed = frame;
      later();
    },
    // Moves the cursor; `follow` brings it back into view, a page further.
    moveTo(frame, follow) {
      cursor = frame;
      const span = to - from;
      if (follow && isZoomed() && (frame < from || frame >= to)) look(frame - span * (frame < from ? 0.9 : 0.1), span);
      later();
    },
    share(together) {
      shared = together;
      laterAll();
    },
    isShared: () => shared,
    geometry: () => ({
      ...areaOf(),
      cursor,
      x: xOf(areaOf(), cursor),
      ranges: Object.fromEntries(state.runs.map((run) => [run, rangeFor(run)])),
    }),
  };
}
