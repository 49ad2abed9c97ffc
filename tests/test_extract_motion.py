"""The motion descriptor against plain loops, against motion that is known, and on inputs that break descriptors."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.types import FeatureSpec
from extract import flow_stats
from extract.backbones import motion
from extract.backbones.base import BackboneError
from extract.backbones.motion import Motion

Clip = NDArray[np.uint8]


def texture(seed: int = 0, height: int = 200, width: int = 320) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.asarray((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255, np.float32)


def passing(dx: int, dy: int, seed: int = 0) -> Clip:
    """A textured square that moves by (dx, dy) pixels per frame over a textured background, (16, 120, 160)."""
    background, square = texture(seed)[:120, :160], texture(seed + 1)[:40, :40]
    frames = np.repeat(background[None], 16, axis=0)
    for i, frame in enumerate(frames):
        y, x = 40 + dy * (i - 8), 60 + dx * (i - 8)
        frame[y : y + 40, x : x + 40] = square
    return frames.astype(np.uint8)


@pytest.fixture(scope="module")
def backbone() -> Motion:
    return Motion()


def describe(backbone: Motion, clip: Clip, fps: float = 25.0) -> NDArray[np.float32]:
    return np.asarray(backbone.extract(clip[None], np.array([fps]))[0, 0])


def stat(backbone: Motion, features: NDArray[np.float32], group: str, time: str, space: str) -> float:
    """One statistic in its own units, the logarithm undone."""
    index = flow_stats.TIME_STATS.index(time) * len(flow_stats.SPACE_STATS) + flow_stats.SPACE_STATS.index(space)
    return float(np.exp(features[backbone.groups[group]][index]) - 1e-3)


# ---- independent references ---------------------------------------------------------------------------------------


def test_pair_channels_match_plain_loops() -> None:
    rng = np.random.default_rng(0)
    u, v = rng.normal(0, 0.5, (2, 2, 60, 80)).astype(np.float32)
    change = rng.normal(0, 15, (2, 60, 80)).astype(np.float32)
    cells, drift = flow_stats.pair_channels(u, v, change)
    found = dict(zip(flow_stats.PAIR_CHANNELS, cells, strict=True))

    def inner(a: NDArray[np.float32], p: int, y: int, x: int) -> tuple[float, float]:
        gx = (a[p, y, x + 1] - a[p, y, x - 1]) / 2 if 0 < x < 79 else 0.0
        gy = (a[p, y + 1, x] - a[p, y - 1, x]) / 2 if 0 < y < 59 else 0.0
        return float(gx), float(gy)

    for p, row, column in ((0, 0, 0), (1, 3, 5), (1, 5, 7)):
        sums: dict[str, float] = dict.fromkeys(flow_stats.PAIR_CHANNELS, 0.0)
        mean_u = mean_v = 0.0
        for y in range(row * 10, row * 10 + 10):
            for x in range(column * 10, column * 10 + 10):
                a, b, d = float(u[p, y, x]), float(v[p, y, x]), abs(float(change[p, y, x]))
                (ux, uy), (vx, vy) = inner(u, p, y, x), inner(v, p, y, x)
                speed = (a * a + b * b) ** 0.5
                sums["speed"] += speed
                sums["energy"] += min(speed**2, 25)
                for limit in (0.05, 0.2, 0.8):
                    sums[f"faster{limit:g}"] += speed > limit
                for name, value in zip(("u_x", "u_y", "v_x", "v_y"), (ux, uy, vx, vy), strict=True):
                    sums[name] += abs(value)
                sums["boundary_u"] += (ux**2 + uy**2) ** 0.5
                sums["boundary_v"] += (vx**2 + vy**2) ** 0.5
                sums["oblique_u"] += min(abs(ux), abs(uy))
                sums["oblique_v"] += min(abs(vx), abs(vy))
                sums["divergence"] += abs(ux + vy)
                sums["curl"] += abs(vx - uy)
                sums["shear"] += ((ux - vy) ** 2 + (vx + uy) ** 2) ** 0.5
                sums["change"] += d
                for grey in (6, 12, 24):
                    sums[f"change{grey}"] += d > grey
                mean_u += a / 100
                mean_v += b / 100
        sums = {name: total / 100 for name, total in sums.items()}
        sums |= {"common": (mean_u**2 + mean_v**2) ** 0.5, "vertical": abs(mean_v)}
        for name, value in sums.items():
            # float32 sums of 100 terms
            assert found[name][p, row * 8 + column] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    block = (slice(None), slice(30, 40), slice(50, 60))
    assert drift[3 * 8 + 5] == pytest.approx(np.hypot(u[block].mean(), v[block].mean()), rel=1e-4)


def test_pooling_forgets_where_but_not_how_much() -> None:
    rng = np.random.default_rng(1)
    values, speed = rng.random(48).astype(np.float32), rng.random(48).astype(np.float32)
    pooled = dict(zip(flow_stats.SPACE_STATS, flow_stats.pool_space(values, speed), strict=True))
    fastest = sorted(range(48), key=lambda i: -speed[i])
    weights = [float(s) + 1e-3 for s in speed]
    assert pooled["avg"] == pytest.approx(sum(values) / 48, rel=1e-5)
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert pooled["weighted"] == pytest.approx(expected, rel=1e-5)
    assert pooled["max"] == max(values)
    assert pooled["top4"] == pytest.approx(np.mean([values[i] for i in fastest[:4]]), rel=1e-5)
    assert pooled["top12"] == pytest.approx(np.mean([values[i] for i in fastest[:12]]), rel=1e-5)
    shuffled = rng.permutation(48)
    np.testing.assert_allclose(
        flow_stats.pool_space(values[shuffled], speed[shuffled]), list(pooled.values()), rtol=1e-5
    )


def test_patterns_match_plain_loops() -> None:
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 40, (5, 9, 11)).astype(np.uint8)
    cut = np.array([False, False, True, False])
    table, bins = flow_stats.pattern_bins()
    counts, moving = np.zeros((3, bins)), 0
    ring = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
    for t in range(1, 4):
        if cut[t - 1] or cut[t]:
            continue
        for y in range(1, 8):
            for x in range(1, 10):
                if abs(int(frames[t + 1, y, x]) - int(frames[t - 1, y, x])) <= 8:
                    continue
                moving += 1
                for row, unit in enumerate((((0, 0, 1), (0, 1, 0)), ((0, 0, 1), (1, 0, 0)), ((0, 1, 0), (1, 0, 0)))):
                    code = 0
                    for bit, (a, b) in enumerate(ring):
                        at = tuple(c + a * p + b * q for c, p, q in zip((t, y, x), *unit, strict=True))
                        code |= (int(frames[at]) > int(frames[t, y, x]) + 3) << bit
                    counts[row, table[code]] += 1
    assert moving > 20
    np.testing.assert_allclose(flow_stats.moving_patterns(frames, cut), counts / (moving + 20), rtol=1e-6)


def test_patterns_of_a_mirrored_clip_are_the_same() -> None:
    frames = np.random.default_rng(3).integers(0, 60, (6, 12, 14)).astype(np.uint8)
    cut = np.zeros(5, bool)
    np.testing.assert_array_equal(
        flow_stats.moving_patterns(frames, cut),
        flow_stats.moving_patterns(np.ascontiguousarray(frames[..., ::-1]), cut),
    )


# ---- known motion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dx", "dy"), [(2, 0), (0, 2), (-3, 0)])
def test_velocity_of_a_moving_square(backbone: Motion, dx: int, dy: int) -> None:
    features = describe(backbone, passing(dx, dy))
    speed = np.hypot(dx, dy) * 25 / 120  # frame heights per second
    # the square covers whole cells of 20 x 20 pixels at times; flow at its borders is blurred
    assert stat(backbone, features, "common", "max", "max") == pytest.approx(speed, rel=0.15)
    vertical = stat(backbone, features, "vertical", "max", "max")
    assert vertical == pytest.approx(abs(dy) * 25 / 120, abs=0.15 * speed)


def test_velocity_is_per_second(backbone: Motion) -> None:
    clip = passing(2, 0)
    slow, fast = (describe(backbone, clip, fps) for fps in (15.0, 30.0))
    for group in ("speed", "boundary_u", "curl", "acceleration"):
        one, two = (stat(backbone, f, group, "mean", "top4") for f in (slow, fast))
        assert two == pytest.approx(2 * one, rel=1e-3), group
    assert stat(backbone, slow, "change", "mean", "avg") == stat(backbone, fast, "change", "mean", "avg")


def test_a_panning_camera_is_no_motion(backbone: Motion) -> None:
    wide = texture(5)
    clip = np.stack([wide[20:140, 40 + 2 * i : 200 + 2 * i] for i in range(16)]).astype(np.uint8)
    assert stat(backbone, describe(backbone, clip), "speed", "mean", "avg") < 0.15 * 2 * 25 / 120


def test_static_clip_does_not_move(backbone: Motion) -> None:
    features = describe(backbone, passing(0, 0))
    for group in (*flow_stats.PAIR_CHANNELS, *flow_stats.STEP_CHANNELS):
        np.testing.assert_allclose(features[backbone.groups[group]], np.log(1e-3), atol=1e-3)


@pytest.mark.parametrize("at", [1, 7, 8, 15])
def test_a_hard_cut_is_not_motion(backbone: Motion, at: int) -> None:
    first, second = passing(1, 0, seed=0), 255 - passing(1, 0, seed=7) // 2
    joined = np.concatenate([first[:at], second[at:]])
    whole, cut, other = (describe(backbone, c) for c in (first, joined, second))
    for group in ("speed", "boundary_u", "change", "acceleration"):
        highest = max(stat(backbone, f, group, "max", "max") for f in (whole, other))
        assert stat(backbone, cut, group, "max", "max") <= highest * 1.01 + 1e-3, group


def test_repeated_frames_are_left_out(backbone: Motion) -> None:
    clip = passing(2, 0)
    filled = clip[np.minimum(np.arange(16), 9)]  # a last clip of ten frames
    whole, part = describe(backbone, clip), describe(backbone, filled)
    speeds = [stat(backbone, f, "speed", "mean", "top4") for f in (whole, part)]
    assert speeds[1] == pytest.approx(speeds[0], rel=0.15)


def test_mirrored_clip_has_nearly_the_same_features(backbone: Motion) -> None:
    clip = passing(3, 1)
    one, two = describe(backbone, clip), describe(backbone, np.ascontiguousarray(clip[..., ::-1]))
    other = describe(backbone, passing(1, 0, seed=9))
    # DIS visits patches from the top left, so its flow is not exactly symmetric
    assert np.abs(one - two).mean() < 0.15 * np.abs(one - other).mean()


# ---- contracts ----------------------------------------------------------------------------------------------------


def test_groups_tile_the_descriptor(backbone: Motion) -> None:
    ends = [0, *(g.stop for g in backbone.groups.values())]
    assert [g.start for g in backbone.groups.values()] == ends[:-1]
    assert ends[-1] == backbone.spec.dim == describe(backbone, passing(1, 0)).size
    assert isinstance(backbone.spec, FeatureSpec)
    assert backbone.spec.weights == "none"


def test_clips_do_not_depend_on_their_batch_or_on_threads(backbone: Motion) -> None:
    clips = np.stack([passing(2, 0), passing(0, 1, seed=4), passing(2, 0)])
    fps = np.array([25.0, 30.0, 25.0])
    together = backbone.extract(clips, fps)
    assert together.dtype == np.float32
    assert together.shape == (3, 1, backbone.spec.dim)
    before = cv2.getNumThreads()
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            alone = [Motion().extract(clips[i : i + 1], fps[i : i + 1])[0] for i in range(3)]
            np.testing.assert_array_equal(np.stack(alone), together)
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("shape", [(16, 120, 160), (16, 33, 47), (16, 1, 1), (1, 120, 160), (2, 5, 300), (3, 240, 320)])
@pytest.mark.parametrize("kind", ["black", "white", "noise", "cuts"])
def test_finite_whatever_comes(backbone: Motion, shape: tuple[int, int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    clip = {
        "black": np.zeros(shape),
        "white": np.full(shape, 255),
        "noise": rng.integers(0, 256, shape),
        "cuts": np.broadcast_to((np.arange(shape[0]) % 2 * 200)[:, None, None], shape),
    }[kind].astype(np.uint8)
    for fps in (25.0, 0.0, float("nan")):
        assert np.isfinite(describe(backbone, clip, fps)).all()


def test_colour_is_read_as_grey(backbone: Motion) -> None:
    clip = passing(2, 0)
    np.testing.assert_array_equal(describe(backbone, np.repeat(clip[..., None], 3, axis=3)), describe(backbone, clip))


def test_wrong_input_says_what_is_wanted(backbone: Motion) -> None:
    with pytest.raises(ValueError, match=r"uint8 clips \(B, T, H, W\)"):
        backbone.extract(np.zeros((1, 16, 120, 160), np.float32), np.array([25.0]))
    with pytest.raises(BackboneError, match="no weights"):
        motion.Motion(weights="imagenet.pth")
    with pytest.raises(BackboneError, match="CPU only"):
        motion.Motion(device="cuda")
