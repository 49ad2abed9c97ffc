// The data of the report: scores, and where clips lie. Scores are stored as pieces of frames that share one score in
// every run: `stops` has the frame behind each piece, a run's `values` one level in 0..65535 for each, between its low
// and high. Clips follow the grid that made the features, as data/grid.py has it.

const data = JSON.parse(byId("data").textContent);

function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const found = atob(text);
  const out = new Uint8Array(found.length);
  for (let i = 0; i < found.length; i += 1) out[i] = found.charCodeAt(i);
  return out;
}

const stops = new Uint32Array(bytes(data.stops).buffer);
const decoded = new Map();

// The levels of a run, one per piece; decoded when they are first asked for.
function levelsOf(run) {
  if (!decoded.has(run)) decoded.set(run, new Uint16Array(bytes(data.runs[run].values).buffer));
  return decoded.get(run);
}

// The piece of a video that frame lies in, as an index into `stops` and values.
function pieceAt(video, frame) {
  let low = video.first;
  let high = video.first + video.count - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (stops[middle] > frame) high = middle;
    else low = middle + 1;
  }
  return low;
}

function scoreOf(run, piece) {
  const { low, high } = data.runs[run];
  return low + (levelsOf(run)[piece] / 65535) * (high - low);
}

const scoreAt = (video, run, frame) => scoreOf(run, pieceAt(video, frame));
const thresholdOf = (run) => data.runs[run].threshold;

// Whether the score at a frame reaches the run's threshold; null where there is none.
const isAbove = (video, run, frame) =>
  known(thresholdOf(run)) ? levelsOf(run)[pieceAt(video, frame)] >= data.runs[run].reach : null;

const eventsAt = (video, frame) => video.events.filter(([start, stop]) => start <= frame && frame < stop);

const videoIndex = new Map(data.videos.map((video, i) => [video.id, i]));

const isBounded = (run) => data.runs[run].low >= 0 && data.runs[run].high <= 1;

// [low, high] of one run, with its threshold in it.
function ownRange(run) {
  const { low, high, threshold } = data.runs[run];
  const [bottom, top] = [Math.min(low, threshold ?? low), Math.max(high, threshold ?? high)];
  return top > bottom ? [bottom, top] : [bottom - 0.5, top + 0.5];
}

// [low, high] that runs share: the unit interval where all scores lie in it.
function rangeOf(runs) {
  if (runs.every(isBounded)) return [0, 1];
  const ranges = runs.map(ownRange);
  return [Math.min(...ranges.map(([low]) => low)), Math.max(...ranges.map(([, high]) => high))];
}

// First frame of clip i; as data/grid.py has it.
function clipStart(video, i) {
  const { stride, rate, tail, count } = video.clip;
  if (tail === "equal") return Math.floor((i * video.frames) / count);
  return Math.min(firstOf(i * stride, rate), video.frames - 1);
}

// First frame of the video for which a resampled frame, or a later one, is the nearest in time.
const firstOf = (shown, rate) => (rate === 1 ? shown : Math.max(Math.ceil((2 * shown - 1) / (2 * rate) - 1e-9), 0));

function clipStop(video, i) {
  const { len, step, stride, rate, tail, count } = video.clip;
  if (tail === "equal") return i + 1 < count ? clipStart(video, i + 1) : video.frames;
  return Math.max(Math.min(firstOf(i * stride + len * step, rate), video.frames), clipStart(video, i) + 1);
}

// The latest clip that starts at or before a frame; null where the grid is not known.
function clipAt(video, frame) {
  if (!video.clip) return null;
  let low = 0;
  let high = video.clip.count - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (clipStart(video, middle) <= frame) low = middle;
    else high = middle - 1;
  }
  return low;
}

// Frames between the starts of neighbouring clips, about.
const clipPitch = (video) =>
  video.clip.tail === "equal" ? video.frames / video.clip.count : video.clip.stride / video.clip.rate;
