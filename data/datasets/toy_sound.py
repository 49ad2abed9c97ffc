"""What a toy video sounds like: the hum of a street, steps, harmless noises, and voices and blows in trouble.

Every cue is synthesised, at 16 kHz mono, from sines and filtered noise; nothing is recorded.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from data.datasets.toy_scene import Cue

RATE = 16000
Wave: TypeAlias = NDArray[np.float64]
Rng: TypeAlias = np.random.Generator


def play(cues: Sequence[Cue], num_frames: int, fps: float, rng: Rng) -> NDArray[np.float32]:
    """The sound of a whole video, (S,) in [-1, 1] with S = num_frames / fps * RATE."""
    total = round(num_frames / fps * RATE)
    sound = 0.015 * _noise(total, rng, 400.0) + 0.004 * np.sin(2 * np.pi * 100 * np.arange(total) / RATE)
    for cue in cues:
        start, count = round(cue.frame / fps * RATE), round(cue.seconds * RATE)
        wave = cue.strength * _VOICES[cue.name](count, rng) if count > 0 else np.zeros(0)
        first, last = max(start, 0), min(start + count, total)  # some begin before the video, or outlast it
        if first < last:
            sound[first:last] += wave[first - start : last - start]
    return np.tanh(sound).astype(np.float32)


def _noise(count: int, rng: Rng, cut_hz: float) -> Wave:
    """Noise whose spectrum falls above `cut_hz`, of deviation 1."""
    spectrum = np.fft.rfft(rng.normal(size=count))
    spectrum /= np.sqrt(1 + (np.fft.rfftfreq(count, 1 / RATE) / cut_hz) ** 4)
    wave = np.fft.irfft(spectrum, count)
    return np.asarray(wave / (wave.std() + 1e-12))


def _decay(count: int, seconds: float) -> Wave:
    return np.asarray(np.exp(-np.arange(count) / (seconds * RATE)))


def _swell(count: int) -> Wave:
    return np.asarray(np.sin(np.pi * (np.arange(count) + 0.5) / count))


def _tone(count: int, hz: Wave | float, harmonics: int) -> Wave:
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(np.asarray(hz, dtype=np.float64), count)) / RATE
    return np.asarray(sum(np.sin(k * phase) / k for k in range(1, harmonics + 1)))


def _step(count: int, rng: Rng) -> Wave:
    return 0.03 * _noise(count, rng, 900.0) * _decay(count, 0.02)


def _blow(count: int, rng: Rng) -> Wave:
    return 0.5 * _noise(count, rng, rng.uniform(500, 1500)) * _decay(count, 0.03)


def _thud(count: int, rng: Rng) -> Wave:
    return 0.7 * _noise(count, rng, 150.0) * _decay(count, 0.08)


def _shout(count: int, rng: Rng) -> Wave:
    pitch = rng.uniform(140, 260) * (1 + 0.25 * _swell(count))
    return (0.22 * _tone(count, pitch, 9) + 0.12 * _noise(count, rng, 2500.0)) * _swell(count)


def _scream(count: int, rng: Rng) -> Wave:
    pitch = rng.uniform(700, 1200) * (1 + 0.06 * np.sin(2 * np.pi * 7 * np.arange(count) / RATE))
    return 0.25 * _tone(count, pitch, 5) * _swell(count)


def _cry(count: int, rng: Rng) -> Wave:
    pitch = rng.uniform(350, 600) * (1.2 - 0.4 * np.arange(count) / count)
    return 0.22 * _tone(count, pitch, 6) * _swell(count)


def _laugh(count: int, rng: Rng) -> Wave:
    pulses = np.maximum(np.sin(2 * np.pi * 5 * np.arange(count) / RATE), 0)
    return 0.09 * _tone(count, rng.uniform(180, 320), 6) * pulses * _swell(count)


def _horn(count: int, rng: Rng) -> Wave:
    low = rng.uniform(330, 440)
    return 0.12 * (_tone(count, low, 4) + _tone(count, 1.26 * low, 4)) * np.minimum(12 * _swell(count), 1)


def _door(count: int, rng: Rng) -> Wave:
    return 0.3 * _noise(count, rng, 250.0) * _decay(count, 0.05)


def _bird(count: int, rng: Rng) -> Wave:
    pitch = rng.uniform(2500, 4000) * (1 + 0.15 * np.sin(2 * np.pi * 11 * np.arange(count) / RATE))
    return 0.06 * _tone(count, pitch, 1) * _swell(count)


def _car(count: int, rng: Rng) -> Wave:
    return (0.06 * _noise(count, rng, 700.0) + 0.03 * _tone(count, rng.uniform(60, 90), 4)) * _swell(count) ** 2


def _bicycle(count: int, rng: Rng) -> Wave:
    return 0.012 * _noise(count, rng, 3000.0) * _swell(count) ** 2


def _jogger(count: int, rng: Rng) -> Wave:
    beats = np.exp(-((np.arange(count) / RATE * 3) % 1) / 0.08)
    return 0.03 * _noise(count, rng, 900.0) * beats * _swell(count)


_VOICES: dict[str, Callable[[int, Rng], Wave]] = {
    "step": _step,
    "blow": _blow,
    "thud": _thud,
    "shout": _shout,
    "scream": _scream,
    "cry": _cry,
    "laugh": _laugh,
    "horn": _horn,
    "door": _door,
    "bird": _bird,
    "car": _car,
    "bicycle": _bicycle,
    "jogger": _jogger,
}
