// Where the clips of a video lie, in frames: the same rules as the grid that made its features.

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
