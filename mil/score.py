"""Scores of videos that nobody has extracted: decoded, described and scored as in training and evaluation.

    scorer = load("runs/mine")
    video = scorer.score("camera.mp4")
    video.plot()

Letters: N clips, F frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from data.store import FeatureStore
from data.types import FeatureSpec, Video, VideoFeatures
from mil import checkpoint, protocol
from mil.bags import shared_grid
from mil.config import Config
from mil.model import Model
from mil.resample import Array
from mil.rundir import RunDir
from mil.score_inputs import printable
from mil.scoring import score_videos
from mil.video_scores import VideoScores

__all__ = ["Scorer", "VideoScores", "load"]

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from extract.streams import Reading


@dataclass(frozen=True, eq=False)
class Scorer:
    """A run that is ready for videos: its head and its backbones, loaded once.

    Args:
        run: where it comes from.
        rule: of selection, whose weights these are.
        model: the head with the scaling of its features, in evaluation mode.
        config: the experiment.
        specs: of the features it was trained on, one per modality.
        backbones: that make the like, in the same order.
        readings: how files are read for each.
        about: what made the scores, for files.
        warnings: what is to be said beside every score.
    """

    run: RunDir
    rule: str
    model: Model
    config: Config
    specs: tuple[FeatureSpec, ...]
    backbones: "tuple[Backbone, ...]"
    readings: "tuple[Reading, ...]"
    device: torch.device
    about: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    def score(self, path: Path | str) -> VideoScores:
        """Scores a video: a file, or a folder that holds its frames as pictures.

        The frame scores are those of `wsvad eval --protocol frames` on the same features: to the bit where it scores
        the video by itself; where it scores several in one batch, up to the rounding of float32.

        Raises DecodeError on a file that cannot be read whole, ValueError on one without the sound that the run was
        trained on, and on scores that are not finite.
        """
        from extract.frame_times import frame_times

        path = Path(path).expanduser()
        video = Video(printable(path), str(path), "test", 0)
        made = [self._extract(video, *pair) for pair in zip(self.backbones, self.readings, strict=True)]
        found = [features for features, _ in made]
        # of a store it asks what its features are, for messages; a backbone says the same
        grid = shared_grid(cast("Sequence[FeatureStore]", self.backbones), video.id, [f.grid for f in found])
        item: dict[str, Array] = {
            spec.modality: f.x[:, : len(grid)].astype(np.float32) for spec, f in zip(self.specs, found, strict=True)
        }
        crops = max(len(spec.crops) for spec in self.specs)
        ((_, clips),) = score_videos(self.model, {video.id: len(grid)}, lambda _: item, crops=crops, device=self.device)
        rules = self.config.evaluate
        clips = protocol.smooth(clips, rules.smooth, rules.smoothing)
        scores = grid.to_frames(clips)
        if not np.isfinite(scores).all():
            raise ValueError(f"{path}: a score is NaN or infinite; the head diverged, train it again")
        notes = list(dict.fromkeys(note for _, said in made for note in said))
        times = frame_times(path, grid.num_frames, found[0].fps)
        return VideoScores(
            video.id,
            path,
            found[0].fps,
            scores,
            clips,
            grid,
            times,
            tuple(notes),
            {**self.about, "warnings": self.warnings},
        )

    def _extract(self, video: Video, backbone: "Backbone", reading: "Reading") -> tuple[VideoFeatures, tuple[str, ...]]:
        from extract.decode import DecodeError
        from extract.video import extract_video

        try:
            return extract_video(video, backbone, batch=backbone.batch, reading=reading)
        except DecodeError as error:
            if "no sound" not in error.reason:
                raise
            trained = f"the run was trained on sound ({backbone.spec.id})"
            remedy = "score it with a run that was trained on pictures alone"
            raise DecodeError(video.path, f"{error.reason}, and {trained}", remedy) from error


def load(
    run: RunDir | Path | str,
    *,
    rule: str | None = None,
    device: str = "cpu",
    weights: Sequence[Path | str] = (),
    online: bool = False,
    damaged: str = "refuse",
) -> Scorer:
    """A run that is ready to score videos; everything that can be refused is, before a video is decoded.

    Args:
        run: its folder.
        rule: whose weights, of those that the run followed; None: the one that it is judged by.
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; of the head and of nets.
        weights: files that made the features, where they are no fetched ones; recognised by their sha256.
        online: score each clip by what came before it, with a head that can.
        damaged: "refuse" videos of which frames are lost, or "keep" what can be decoded.

    Raises:
        ValueError: no run or no such rule, features that cannot be made here, a head that looks ahead.
    """
    from extract.device import device_of
    from extract.recreate import files_of, reading_of, recreate, unrelated

    run = run if isinstance(run, RunDir) else RunDir(Path(run).expanduser())
    rule = run.followed(rule)
    place = device_of(device)
    kept = (checkpoint.load_online if online else checkpoint.load)(run.checkpoint_of(rule), place)
    if not kept.specs:
        raise ValueError(
            f"{run.root} was imported, and nobody recorded what made the features it was trained on, so that no video "
            "can be made into the like; train a head on features that `wsvad extract` made, and score with that"
        )
    unrelated(weights, kept.specs)
    backbones, readings = [], []
    for spec in kept.specs:
        own = files_of(spec, weights)
        backbones.append(recreate(spec, own, place))
        readings.append(reading_of(spec, own, place, damaged))
    about = _about(run, rule, kept, online=online)
    return Scorer(
        run,
        rule,
        kept.model,
        kept.config,
        kept.specs,
        tuple(backbones),
        tuple(readings),
        torch.device(place),
        about,
        tuple(_warnings(run, rule, kept)),
    )


def _about(run: RunDir, rule: str, kept: checkpoint.Checkpoint, *, online: bool) -> dict[str, Any]:
    rules = kept.config.evaluate
    return {
        "run": str(run.root.resolve()),
        "recipe": kept.config.recipe,
        "head": kept.config.head.name,
        "seed": kept.config.seed,
        "rule": rule,
        "selected_by": kept.selected_by,
        "step": kept.step,
        "optimistic": rule == "test",
        "features": [spec.id for spec in kept.specs],
        "random_weights": any(spec.is_random for spec in kept.specs),
        "online": online,
        "protocol": "frames",
        "smooth_clips": rules.smooth,
        "smoothing": rules.smoothing if rules.smooth > 1 else "none",
    }


def _warnings(run: RunDir, rule: str, kept: checkpoint.Checkpoint) -> list[str]:
    found = []
    if rule == "test":
        found.append("OPTIMISTIC: these weights were chosen on the test videos")
    if random := [spec.id for spec in kept.specs if spec.is_random]:
        found.append(f"random weights: {', '.join(random)} comes from a net that has learned nothing")
    if (state := run.status["state"]) != "done":
        found.append(f"training is not done ({state}), these weights are of step {kept.step}")
    return found
