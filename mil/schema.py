"""What an experiment may choose, value by value: the schema of recipes and of a run's config.yaml."""

from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from mil.rules import Rule


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HeadConfig(BaseModel):
    """`name` of a registered head, and its options as further keys."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The head's keyword arguments."""
        return dict(self.model_extra or {})


class DataConfig(_Part):
    """How a video becomes a training bag; evaluation always scores every clip."""

    modalities: tuple[str, ...] = Field(
        (), description='of the stores given, those that are used, e.g. ["visual", "audio"]; none: all of them'
    )
    resample: Literal["segments", "pick", "interpolate", "resize", "shrink", "repeat", "random", "full"] = "segments"
    count: int = Field(32, ge=1, description="segments per training bag")
    scale: Literal["none", "l2", "standardize"] = Field("none", description="of each clip's features, before the head")
    sqrt: bool = Field(False, description="signed square root before scaling (Hellinger), for histograms")
    clamp: float | None = Field(None, gt=0, description="limit of the standardized features, in deviations")
    dtype: Literal["float16", "float32"] = Field("float16", description="in which training segments are kept")


class GroupConfig(_Part):
    """What parameters of their own have; None: as the others."""

    lr: float | None = Field(None, ge=0)
    weight_decay: float | None = Field(None, ge=0)


class OptimizerConfig(_Part):
    """torch.optim's optimizer of that name."""

    name: Literal["adagrad", "adam", "adamw", "radam", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    eps: float | None = Field(None, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd only")
    groups: dict[str, GroupConfig] = Field({}, description="by the beginning of the parameters' names in the head")


class TrainConfig(_Part):
    """The loop."""

    steps: int = Field(1000, ge=1)
    epochs: int | None = Field(None, ge=1, description="instead of steps; milestones and t_max then count epochs too")
    sampler: Literal["balanced", "passes", "mixed"] = Field(
        "balanced",
        description="pairs drawn anew for every step; pairs in passes over each class; or videos of both kinds mixed",
    )
    pairs: int = Field(30, ge=1, description="balanced, passes: anomalous and as many normal videos per step")
    batch: int = Field(128, ge=1, description="mixed: videos per step")
    samples: Literal["videos", "crops"] = Field("videos", description="crops: each crop of a video is drawn by itself")
    shuffle: bool = Field(True, description="passes, mixed: else always in the order of the manifest")
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: Literal["constant", "cosine", "milestones"] = "constant"
    milestones: tuple[int, ...] = Field((), description="milestones: steps after which lr is multiplied by gamma")
    t_max: int | None = Field(None, ge=1, description="cosine: steps down to 0; none: all")
    gamma: float = Field(0.1, gt=0, description="milestones: the factor")
    clip_norm: float | None = Field(None, gt=0, description="of the whole gradient")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the averaged weights that are kept; none: the last"
    )
    noise: float = Field(0.0, ge=0, description="Gaussian noise on the scaled features, in their units")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the head's layers; weights and losses stay fp32")
    compile: Literal["none", "kernels", "graphs"] = Field("none", description="torch.compile; graphs: CUDA graphs too")
    log_every: int = Field(50, ge=1)
    save_every: int = Field(500, ge=1, description="steps between states to resume from")

    def total(self, per_epoch: int) -> int:
        """Steps of the whole training, where an epoch has `per_epoch`."""
        return self.steps if self.epochs is None else self.epochs * per_epoch


class SelectConfig(_Part):
    """Which step's weights are kept: of the last step, of the best look at held-out training videos, or at test ones.

    "test" is the habit of the field. Its number is optimistic, and is called so wherever it is shown.
    """

    rule: Rule = Field("last", description="whose weights a run is judged by")
    also: tuple[Rule, ...] = Field((), description="rules that are followed beside it, with weights of their own")
    fraction: float = Field(0.2, gt=0, lt=1, description="val: share of the training videos held out, per class")
    every: int = Field(50, ge=1, description="val, test: steps between looks")
    metric: Literal["auc", "ap"] = Field("auc", description="test: frame-level number that is to be best")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All that are followed, each once, `rule` first."""
        return tuple(dict.fromkeys((self.rule, *self.also)))


class EvalConfig(_Part):
    """What happens between the head and the metrics."""

    protocol: str = "auto"  # frames where true lengths are known, else snippets
    smooth: int = Field(1, ge=1, description="number of neighbouring clips whose scores are averaged")
    smoothing: Literal["centred", "ahead", "blocks"] = Field(
        "centred", description="around each clip (odd numbers); from it on; or in fixed blocks: zeros behind the end"
    )


class Config(_Part):
    """One experiment. `config.yaml` of a run holds every value, defaults included."""

    recipe: str = ""
    about: str = Field("", description="one line, shown by `wsvad ls recipes`")
    head: HeadConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    select: SelectConfig = SelectConfig()
    evaluate: EvalConfig = EvalConfig()
    seed: int = Field(0, ge=0)

    def to_yaml(self) -> str:
        """Every value, ready to be read back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
