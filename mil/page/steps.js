// Scores and ground truth of one video on a canvas: small beside a name, or large in the timeline.

// A place to draw in, in CSS pixels: frames [from, to) between left and right, scores low..high between bottom and top.
const xOf = (area, frame) => area.left + ((frame - area.from) / (area.to - area.from)) * (area.right - area.left);
const frameOf = (area, x) => area.from + ((x - area.left) / (area.right - area.left)) * (area.to - area.from);

function yOf(area, score, [low, high]) {
  const part = Math.min(Math.max((score - low) / (high - low), 0), 1);
  return area.bottom - part * (area.bottom - area.top);
}

// Sharp lines on any screen: the canvas gets as many pixels as it covers.
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

// The canvas as another shows it, to be drawn on.
function copied(canvas, from) {
  const context = sized(canvas, canvas.clientWidth, canvas.clientHeight);
  context.drawImage(from, 0, 0, canvas.clientWidth, canvas.clientHeight);
  return context;
}

function drawTruth(context, area, video, alpha) {
  context.save();
  context.globalAlpha = alpha;
  context.fillStyle = colour("truth");
  for (const [start, stop] of video.events) {
    const x = Math.max(xOf(area, start), area.left);
    const end = Math.min(xOf(area, stop), area.right);
    if (end > area.left && x < area.right) context.fillRect(x, area.top, Math.max(end - x, 1), area.bottom - area.top);
  }
  context.restore();
}

// The score of a run as steps. Where many pieces share a pixel, their lowest and highest are drawn: no peak is lost.
function drawSteps(context, area, video, run, range, width) {
  const last = video.first + video.count - 1;
  const from = Math.max(area.from, 0);
  let column = null; // of a pixel: {x, low, high}, from where the last one ended
  let x = xOf(area, from);
  let i = pieceAt(video, from);
  let before = yOf(area, scoreOf(run, i), range);
  const through = () => {
    if (!column) return;
    context.fillRect(column.x, column.high - width / 2, width, column.low - column.high + width);
    context.moveTo(column.x + 0.5, before);
    column = null;
  };
  context.save();
  context.beginPath();
  context.rect(area.left, 0, area.right - area.left, area.bottom + 2);
  context.clip();
  context.fillStyle = runColour(run);
  context.beginPath();
  context.moveTo(x, before);
  for (; i <= last; i += 1) {
    const end = xOf(area, Math.min(stops[i], area.to));
    const y = yOf(area, scoreOf(run, i), range);
    if (end - x < 1) {
      if (column?.x !== Math.floor(x)) {
        through();
        column = { x: Math.floor(x), low: before, high: before };
      }
      column.low = Math.max(column.low, y);
      column.high = Math.min(column.high, y);
    } else {
      through();
      context.lineTo(x, y);
      context.lineTo(end, y);
    }
    before = y;
    x = end;
    if (stops[i] >= area.to) break;
  }
  through();
  context.setLineDash(dashOf(run));
  context.lineWidth = width;
  context.lineJoin = "round";
  context.strokeStyle = runColour(run);
  context.stroke();
  context.restore();
}

function drawLevel(context, area, y, name) {
  context.save();
  context.strokeStyle = colour(name);
  context.setLineDash([4, 3]);
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(area.left, Math.round(y) + 0.5);
  context.lineTo(area.right, Math.round(y) + 0.5);
  context.stroke();
  context.restore();
}

const drawnSparks = new Set();

// Draws a canvas beside a video's name; those out of sight hold no pixels.
function drawSpark(canvas) {
  const video = data.videos[canvas.dataset.video];
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return;
  const context = sized(canvas, width, height);
  const area = { left: 0, right: width, top: 2, bottom: height - 2, from: 0, to: video.frames };
  const range = ownRange(state.focus);
  drawTruth(context, { ...area, top: 0, bottom: height }, video, 0.28);
  const threshold = thresholdOf(state.focus);
  if (known(threshold)) drawLevel(context, area, yOf(area, threshold, range), "faint");
  drawSteps(context, area, video, state.focus, range, 1.3);
  drawnSparks.add(canvas);
}

function clearSpark(canvas) {
  canvas.width = 0;
  drawnSparks.delete(canvas);
}

const sparksInSight = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) drawSpark(target);
      else if (drawnSparks.has(target)) clearSpark(target);
    }
  },
  { rootMargin: "150px 0px" },
);

function spark(index) {
  const canvas = h("canvas", { class: "spark", "data-video": index, "aria-hidden": "true" });
  sparksInSight.observe(canvas);
  return canvas;
}

// A canvas that is about to leave the page.
function dropSpark(canvas) {
  sparksInSight.unobserve(canvas);
  drawnSparks.delete(canvas);
}

const redrawSparks = () => [...drawnSparks].forEach(drawSpark);
