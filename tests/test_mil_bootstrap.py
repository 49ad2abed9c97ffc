"""Bootstrap over videos: equal to scikit-learn on the videos that were drawn, and covering what it should."""

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from data.types import FrameScores
from mil import bootstrap, metrics


def simulate(count, seed, *, shift=1.0, clips=(2, 9), share=0.5):
    """Each video has a level of its own, so that its frames depend on each other; scores stand for 16 frames."""
    rng = np.random.default_rng(seed)
    videos = []
    for i in range(count):
        n = int(rng.integers(*clips))
        labels = np.zeros(16 * n, np.uint8)
        if rng.random() < share:
            first = int(rng.integers(0, 8 * n))
            labels[first : first + 8 * n] = 1
        inside = labels.reshape(n, 16).mean(axis=1)
        scores = np.repeat((rng.normal() + rng.normal(size=n) + shift * inside).round(1), 16)
        videos.append(FrameScores(f"v{i}", scores, labels))
    return videos


def drawn_videos(videos, resamples, seed):
    """The draws that a seed stands for, as index lists."""
    rng = np.random.default_rng(seed)
    for times in rng.multinomial(len(videos), [1 / len(videos)] * len(videos), size=resamples):
        yield [v for v, n in zip(videos, times, strict=True) for _ in range(n)]


@pytest.mark.parametrize("seed", [0, 7])
def test_resamples_equal_scikit_learn_on_the_drawn_videos(seed):
    videos = simulate(20, seed)
    found = bootstrap.resample(videos, resamples=40, seed=seed)
    for r, drawn in enumerate(drawn_videos(videos, 40, seed)):
        scores, labels = np.concatenate([v.scores for v in drawn]), np.concatenate([v.labels for v in drawn])
        precision, recall, _ = precision_recall_curve(labels, scores)
        assert found["auc"][r] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert found["ap"][r] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        assert found["pr_auc"][r] == pytest.approx(auc(recall, precision), abs=1e-12)


def test_fewer_names_give_the_same_numbers():
    videos = simulate(12, 4)
    every = bootstrap.resample(videos, resamples=25, seed=2)
    assert tuple(every) == bootstrap.NAMES
    for name, values in every.items():
        (alone,) = bootstrap.resample(videos, resamples=25, seed=2, names=[name]).items()
        assert (alone[0], alone[1].tolist()) == (name, pytest.approx(values.tolist(), nan_ok=True, abs=0))


@pytest.mark.parametrize("chunk", [1, 3000, 1e5])
def test_how_many_are_computed_at_once_changes_nothing(monkeypatch, chunk):
    videos = simulate(15, 3)
    whole = bootstrap.resample(videos, resamples=101, seed=5)
    monkeypatch.setattr(bootstrap, "_CHUNK_BYTES", chunk)
    parts = bootstrap.resample(videos, resamples=101, seed=5)
    for name, values in whole.items():
        assert np.array_equal(values, parts[name]), name
        assert len(values) == 101


def test_the_seed_decides():
    videos = simulate(15, 3)
    first, again, other = (bootstrap.resample(videos, resamples=30, seed=s)["auc"] for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """80 test sets of 60 videos; their true AUC is that of 6,000. 95 % intervals by percentiles are a little narrow:
    at a true coverage of .92, fewer than 65 of 80 are a one in 1,800 event; 80 % intervals must miss more often."""
    truth = metrics.evaluate(simulate(6000, 999))["auc"]
    wide = narrow = 0
    for seed in range(80):
        values = bootstrap.resample(simulate(60, seed), resamples=300, seed=seed)["auc"]
        low, high = bootstrap.interval(values)
        inner_low, inner_high = bootstrap.interval(values, level=0.6)
        wide += low <= truth <= high
        narrow += inner_low <= truth <= inner_high
    assert wide >= 65
    assert 32 <= narrow <= 64  # 48 expected at 60 %, standard deviation 4.4


def test_intervals_of_frames_would_be_far_too_narrow():
    """The reason for drawing whole videos: with frames drawn one by one the interval is a fraction as wide."""
    videos = simulate(60, 0)
    low, high = bootstrap.interval(bootstrap.resample(videos, resamples=300)["auc"])
    single = [
        FrameScores(f"{v.video_id}:{i}", v.scores[i : i + 1], v.labels[i : i + 1])
        for v in videos
        for i in range(len(v.scores))
    ]
    frames_low, frames_high = bootstrap.interval(bootstrap.resample(single, resamples=100)["auc"])
    assert frames_high - frames_low < 0.4 * (high - low)


def test_draws_without_a_class_are_nan_and_left_out():
    """One anomalous video of three, wholly anomalous: (2/3)^3 of the draws miss it, (1/3)^3 hold nothing else."""
    videos = [
        FrameScores("bad", np.array([0.9, 0.3]), np.array([1, 1], np.uint8)),
        FrameScores("calm", np.array([0.5]), np.array([0], np.uint8)),
        FrameScores("quiet", np.array([0.1]), np.array([0], np.uint8)),
    ]
    found = bootstrap.resample(videos, resamples=2000, seed=0)
    drawn = [{v.video_id for v in draw} for draw in drawn_videos(videos, 2000, 0)]
    without = np.array(["bad" not in names for names in drawn])
    only = np.array([names == {"bad"} for names in drawn])
    assert np.array_equal(np.isnan(found["auc"]), without | only)
    assert np.array_equal(np.isnan(found["ap"]), without)
    assert (found["ap"][only] == 1).all()
    kept = found["auc"][~(without | only)]
    assert bootstrap.interval(found["auc"]) == tuple(np.quantile(kept, [0.025, 0.975]))


def test_one_video_is_always_itself():
    scores, labels = np.array([0.9, 0.2, 0.4]), np.array([1, 0, 1], np.uint8)
    found = bootstrap.resample([FrameScores("a", scores, labels)], resamples=5)
    assert found["auc"].tolist() == [1.0] * 5
    assert bootstrap.interval(found["auc"]) == (1.0, 1.0)


def test_interval_by_hand():
    values = np.arange(101.0)
    values[50] = np.nan
    np.random.default_rng(0).shuffle(values)
    assert bootstrap.interval(values, level=1.0) == (0, 100)
    assert bootstrap.interval(np.arange(101.0), level=0.9) == pytest.approx((5, 95), abs=1e-9)
    assert bootstrap.interval(np.full(3, np.nan)) is None
