// The data of the report, and scores from it. Scores are stored as pieces of frames that share one score in every run:
// `stops` has the frame behind each piece, a run's `values` one number in 0..65535 for each, between its low and high.

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

// The scores of a run as floats, one per piece; decoded when they are first asked for.
function valuesOf(run) {
  if (!decoded.has(run)) {
    const { low, high, values } = data.runs[run];
    const steps = new Uint16Array(bytes(values).buffer);
    decoded.set(
      run,
      Float32Array.from(steps, (step) => low + (step / 65535) * (high - low)),
    );
  }
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

const scoreAt = (video, run, frame) => valuesOf(run)[pieceAt(video, frame)];
const thresholdOf = (run) => data.runs[run].threshold;

// Whether a decoded score reaches the run's threshold; null where there is none. Decoding may miss a score by half a
// step, and scores that equal the threshold are common: within half a step they count as equal.
function reaches(value, run) {
  const { threshold, low, high } = data.runs[run];
  if (!known(threshold)) return null;
  const half = (high - low) / 65535 / 2;
  return value >= (threshold - low > half ? threshold - half : threshold);
}
const eventsAt = (video, frame) => video.events.filter(([start, stop]) => start <= frame && frame < stop);

const alarms = new Map();

// Share of a video's normal frames at or above the run's threshold, false alarms; null where there is none of either.
function alarmShare(index, run) {
  if (!alarms.has(run))
    alarms.set(
      run,
      data.videos.map((video) => countAlarms(video, run)),
    );
  return alarms.get(run)[index];
}

function countAlarms(video, run) {
  if (!known(thresholdOf(run))) return null;
  const values = valuesOf(run);
  const events = [...video.events].sort((a, b) => a[0] - b[0]);
  let above = 0;
  let normal = 0;
  let start = 0;
  for (let i = video.first; i < video.first + video.count; i += 1) {
    let free = stops[i] - start;
    let from = start; // frames before it are counted: events may overlap
    for (const [first, last] of events) {
      const [a, b] = [Math.max(first, from), Math.min(last, stops[i])];
      if (b > a) [free, from] = [free - (b - a), b];
    }
    normal += free;
    if (reaches(values[i], run)) above += free;
    start = stops[i];
  }
  return normal ? above / normal : null;
}

const videoIndex = new Map(data.videos.map((video, i) => [video.id, i]));

const isBounded = (run) => data.runs[run].low >= 0 && data.runs[run].high <= 1;

// [low, high] that the scores of runs fit in: the unit interval where all lie in it.
function rangeOf(runs) {
  if (runs.every(isBounded)) return [0, 1];
  const low = Math.min(...runs.map((run) => data.runs[run].low));
  const high = Math.max(...runs.map((run) => data.runs[run].high));
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}

// [low, high] of one run alone, with its threshold in it.
function ownRange(run) {
  const { low, high, threshold } = data.runs[run];
  const all = known(threshold) ? [low, high, threshold] : [low, high];
  const [bottom, top] = [Math.min(...all), Math.max(...all)];
  return top > bottom ? [bottom, top] : [bottom - 0.5, top + 0.5];
}
