// What stands around the curves of the timeline: rulers, events, clips, the cursor.

// Rulers: scores at the left where the runs share a scale, time below.
function drawGrid(context, area, video, range) {
  context.lineWidth = 1;
  context.fillStyle = colour("soft");
  context.textBaseline = "middle";
  context.textAlign = "right";
  const levels = range ? ticks(range[0], range[1], (area.bottom - area.top) / 44) : [0, 0.5, 1];
  for (const level of levels) {
    const y = Math.round(yOf(area, level, range ?? [0, 1])) + 0.5;
    context.strokeStyle = colour("line");
    context.beginPath();
    context.moveTo(area.left, y);
    context.lineTo(area.right, y);
    context.stroke();
    const name = range ? tickText(level, levels[1] - levels[0]) : ["low", "", "high"][level * 2];
    context.fillText(name, area.left - 6, y);
  }
  const rate = video.fps ?? 1;
  const times = ticks(area.from / rate, area.to / rate, (area.right - area.left) / 90);
  const step = times.length > 1 ? times[1] - times[0] : 1;
  context.textAlign = "center";
  for (const time of times) {
    const x = Math.min(Math.max(xOf(area, time * rate), area.left + 10), area.right - 12);
    const text = video.fps ? clock(time, step < 1 ? (step < 0.1 ? 2 : 1) : 0) : whole(Math.round(time));
    context.fillText(text, x, area.bottom + 24);
  }
}

// A bar above each event with its kind, where it fits.
function drawEvents(context, area, video) {
  for (const [start, stop, kind] of video.events) {
    const x = Math.max(xOf(area, start), area.left);
    const end = Math.min(xOf(area, stop), area.right);
    if (end <= area.left || x >= area.right) continue;
    context.fillStyle = colour("truth-bar");
    context.fillRect(x, area.top - 3, Math.max(end - x, 2), 3);
    const name = kind || "anomalous";
    context.save();
    context.beginPath();
    context.rect(x, 0, Math.max(end - x, 0), area.top);
    context.clip();
    context.fillStyle = colour("truth-ink");
    context.textAlign = "left";
    context.textBaseline = "middle";
    if (end - x > 18) context.fillText(name, x + 2, area.top - 11);
    context.restore();
  }
}

// The clip under the cursor as a bar below the curve.
function drawClipHere(context, area, video, cursor) {
  if (!video.clip) return;
  const here = clipAt(video, cursor);
  const x = Math.max(xOf(area, clipStart(video, here)), area.left);
  const end = Math.min(xOf(area, clipStop(video, here)), area.right);
  context.fillStyle = colour("clip");
  if (end > x) context.fillRect(x, area.bottom + 3, Math.max(end - x, 1), 6);
}

// Boundaries of clips, where they are far enough apart.
function drawClips(context, area, video) {
  if (!video.clip) return;
  const pixels = (clipPitch(video) / (area.to - area.from)) * (area.right - area.left);
  const y = area.bottom + 3;
  if (pixels < CLIPS_FROM) return;
  context.strokeStyle = colour("soft");
  context.beginPath();
  for (let i = clipAt(video, area.from); i < video.clip.count; i += 1) {
    const at = Math.round(xOf(area, clipStart(video, i))) + 0.5;
    if (at > area.right) break;
    if (at < area.left) continue;
    context.moveTo(at, y);
    context.lineTo(at, y + 6);
  }
  context.stroke();
}

function drawThreshold(context, area, run, y) {
  drawLevel(context, area, y, `run-${slotOf(run) % COLOURS}`);
}

function drawCursor(context, area, frame, name, handle) {
  const x = xOf(area, frame);
  if (x < area.left - 0.5 || x > area.right + 0.5) return;
  context.strokeStyle = colour(name);
  context.fillStyle = colour(name);
  context.lineWidth = handle ? 1.5 : 1;
  context.beginPath();
  context.moveTo(x, handle ? area.top - 4 : area.top);
  context.lineTo(x, area.bottom + (handle ? 2 : 0));
  context.stroke();
  if (!handle) return;
  context.beginPath();
  context.moveTo(x - 5, area.top - 10);
  context.lineTo(x + 5, area.top - 10);
  context.lineTo(x, area.top - 2);
  context.fill();
}
