"""What `wsvad watch` is made of: a run, its backbones, the rule for events; and what is said of them first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mil import checkpoint, score
from mil.heads import heads
from mil.online import OnlineScorer
from mil.rundir import RunDir
from mil.threshold import Threshold, training_threshold
from mil.watch import Watcher


def watcher_of(
    run: Path | RunDir,
    *,
    rule: str | None = None,
    threshold: float | None = None,
    low: float | None = None,
    min_s: float | None = None,
    merge_s: float | None = None,
    window: int | None = None,
    delay: int | None = None,
    smooth: int | None = None,
    offline: bool = False,
    device: str = "cpu",
    weights: Sequence[Path] = (),
    source: str = "",
) -> tuple[Watcher, Mapping[str, Any]]:
    """A run, ready for the pieces of a live source, and what `LiveSource` has to be told of its features.

    Args:
        run: a trained one.
        rule: whose weights, of those that the run followed; None: the one that it is judged by.
        threshold: where events begin; None: chosen on the run's training videos.
        low: events go on down to it; None, here and below: as `Threshold.rule` has it.
        min_s: shorter ones are none, seconds.
        merge_s: those less than that apart are one, seconds.
        window: clips that a head sees which is not causal; None, also below: as `OnlineScorer` has it.
        delay: clips that it sees behind the one it scores.
        smooth: clips, instead of the recipe's.
        offline: a head that could be made causal, by its `causal_options`, is not.
        device: where the head and the nets run.
        weights: files of backbones whose weights are not fetched ones.
        source: only said.

    Raises ValueError, and what `mil.score.load` and `training_threshold` raise.
    """
    run = run if isinstance(run, RunDir) else RunDir(run)
    online = not offline and _could_be_causal(run, rule)
    scorer = score.load(run, rule=rule, device=device, weights=weights, online=online)
    rules = scorer.config.evaluate
    if smooth is not None:
        if smooth % 2 == 0 and rules.smoothing == "centred":
            raise ValueError(f"--smooth must be odd, so that no score moves in time; got {smooth}")
        rules = rules.model_copy(update={"smooth": smooth})
    scores = OnlineScorer(scorer.model, rules, window=window, delay=delay)
    if threshold is None:
        chosen = training_threshold(run, scorer.rule, device, online=online)
    else:
        chosen = Threshold.given(threshold)
    events = chosen.rule(low=low, min_s=min_s, merge_s=merge_s)
    about = {
        "source": source,
        **scorer.about,
        "smooth_clips": rules.smooth,
        "smoothing": rules.smoothing if rules.smooth > 1 else "none",
        "warnings": list(scorer.warnings),
        "causal": scores.lookback is not None,
        "window": scores.window,
        "threshold": events.high,
        "threshold_about": chosen.about,
        "low": events.low,
        "min_s": events.min_s,
        "merge_s": events.merge_s,
    }
    flow = [reading.flow_weights for reading in scorer.readings if reading.flow_weights is not None]
    wanted = {"specs": scorer.specs, "device": str(scorer.device), "flow_weights": flow[0] if flow else None}
    return Watcher(scorer.specs, scorer.backbones, scores, events, about), wanted


def _could_be_causal(run: RunDir, rule: str | None) -> bool:
    """Whether its head looks ahead as it was trained, but need not."""
    config = run.config
    rule = rule or config.select.rule
    if not heads.get(config.head.name).causal_options or rule not in config.select.rules:
        return False
    return checkpoint.load(run.checkpoint_of(rule)).model.head.lookback is None
