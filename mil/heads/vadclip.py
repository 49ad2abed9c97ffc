"""VadCLIP (Wu et al., "VadCLIP: Adapting Vision-Language Models for Weakly Supervised Video Anomaly Detection",
AAAI 2024, https://arxiv.org/abs/2308.11681)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, normalize, pad

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.layers.graph import GraphConvolution, proximity, similarity
from mil.layers.prompts import NORMAL, prompt_table
from mil.layers.windows import Perceptron, WindowBlock, quick_gelu
from mil.losses import sixteenth, topk_mean
from mil.published import Published


@heads.register("vadclip")
class VadCLIPHead(Head):
    """Attention in short windows and two graphs; a score of its own, and the likeness to each class's text.

    For CLIP's image features. A video goes through in chunks of `length` segments: learned positions, a transformer
    whose attention stays inside windows, two graph convolutions on each of two graphs (alike, near). The coarse branch
    gives each segment a logit. The fine branch compares each with the class texts, to which it first adds what the
    coarse logits point at, by cosine.

    The paper learns context vectors around the class names, in front of CLIP's text encoder. Here stored vectors stand
    for its output: they stay as they are, so that the term that keeps "normal" apart from the classes is a number
    without a gradient. To make a table, give each class name (as the manifest has it, plus "normal") a sentence or the
    authors' learned prompt, and keep what CLIP's `encode_text` returns, as it is, not normalised:

        np.savez("classes.npz", **{name: vector})  # each (512,), float32

    Args:
        dim: feature size D (512 for CLIP ViT-B/16). Where it is not `width`, a linear layer comes first.
        width: of everything behind, and of the class vectors.
        length: segments that are seen together; longer videos go through in chunks of so many.
        layers: of the transformer (2 on UCF-Crime, 1 on XD-Violence).
        attention_heads: of each.
        window: segments of one window; `length` must be a multiple (8 on UCF-Crime, 64 on XD-Violence).
        temperature: of the cosines to the texts.
        threshold: cosines between segments up to this one count as 0 in the graph.
        apart: weight of the mean |cosine| of "normal" to the other classes (0.1 on UCF-Crime, 1e-4 on XD-Violence).
        score: "coarse", the sigmoid of the first branch (UCF-Crime); "fine", 1 - the probability of "normal" (XD).
        classes: the anomalous classes; "normal" comes before them. Empty: those of the training videos.
        prompts: a .safetensors or .npz file of one vector for each class and for "normal". A checkpoint holds the
            vectors and does not need the file. None: unit vectors that the names alone decide; the classes are told
            apart, but there is no knowledge of language in it.
        as_published: every chunk is padded to `length`, and the padding takes part wherever the published code has no
            mask: in the attention, in the graph of near segments, in the convolutions beside the graphs and in what
            the texts are moved by. Without it a video scores as if nothing came behind it. Both agree for videos of
            whole chunks.
    """

    paper = "Wu et al., AAAI 2024"
    compares = False
    takes_classes = True
    reads = ("prompts",)
    text: Tensor

    def __init__(
        self,
        dim: int,
        *,
        width: int = 512,
        length: int = 256,
        layers: int = 2,
        attention_heads: int = 1,
        window: int = 8,
        temperature: float = 0.07,
        threshold: float = 0.7,
        apart: float = 0.1,
        score: Literal["coarse", "fine"] = "coarse",
        classes: tuple[str, ...] = (),
        prompts: str | None = None,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if window < 1 or length % window or width % (2 * attention_heads):
            raise ValueError(
                f"vadclip needs a length that is a multiple of the window, and an even width that is one of the "
                f"attention's heads, got length={length}, window={window}, width={width}, "
                f"attention_heads={attention_heads}"
            )
        if NORMAL in classes:
            raise ValueError(f"head.classes names the anomalous classes alone, '{NORMAL}' comes before them by itself")
        self.length, self.window, self.temperature, self.threshold = length, window, temperature, threshold
        self.apart, self.score, self.classes = apart, score, tuple(classes)
        self.as_published, self.made_up = as_published, prompts is None
        self.register_buffer("text", prompt_table((NORMAL, *self.classes), prompts, width))
        self.project = nn.Linear(dim, width) if dim != width else None
        self.positions = nn.Parameter(0.01 * torch.randn(length, width))
        self.blocks = nn.ModuleList(WindowBlock(width, attention_heads, window) for _ in range(layers))
        half = width // 2
        self.alike = nn.ModuleList([GraphConvolution(width, half), GraphConvolution(half, half)])
        self.near = nn.ModuleList([GraphConvolution(width, half), GraphConvolution(half, half)])
        self.join = nn.Linear(width, width)
        self.text_mlp, self.coarse_mlp = Perceptron(width), Perceptron(width)
        self.classifier = nn.Linear(width, 1)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]: the mean over the crops, 0 where padded.

        aux: `coarse` logits (B, K, T) and `fine` logits (B, K, T, C + 1), "normal" first.
        Raises ValueError for fine scores without a class.
        """
        if self.score == "fine" and not self.classes:  # everything would be normal
            raise ValueError("head.score=fine needs the classes; pass --set head.classes=[NAME,...]")
        x, crops = fold(bag.x), bag.crops
        mask = spread(bag.mask, crops)
        N, T = mask.shape
        if self.project is not None:
            x = self.project(x)
        whole = self.as_published or self.length < T
        extra = -T % self.length if whole else 0
        rows = self.length if whole else T
        x = pad(x * mask[..., None], (0, 0, 0, extra)).reshape(-1, rows, x.shape[-1])
        chunks = pad(mask, (0, extra)).reshape(-1, rows)
        coarse, fine = self._chunks(x, chunks)
        logits = {
            "coarse": unfold(coarse.reshape(N, -1)[:, :T], crops),
            "fine": unfold(fine.reshape(N, -1, len(self.text))[:, :T], crops),
        }
        fine_scores = 1 - logits["fine"].softmax(dim=-1)[..., 0]
        scores = logits["coarse"].sigmoid() if self.score == "coarse" else fine_scores
        return HeadOutput(crop_mean(scores, bag.mask), logits)

    def _chunks(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(M, T, width), (M, T) -> coarse (M, T) and fine (M, T, C + 1) logits; T <= length."""
        seen = torch.ones_like(mask) if self.as_published else mask  # whether padding is what it holds, or nothing
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x, seen)
        parts = []
        for layers, graph in ((self.alike, similarity(x, mask, self.threshold)), (self.near, proximity(x))):
            part = x
            for layer in layers:
                part = quick_gelu(layer(part, graph, seen))
            parts.append(part)
        x = self.join(torch.cat(parts, dim=-1))
        coarse: Tensor = self.classifier(x + self.coarse_mlp(x)).squeeze(-1)
        pointed = normalize((coarse * seen)[:, None] @ x, dim=-1)  # (M, 1, width)
        text = self.text + pointed
        text = normalize(text + self.text_mlp(text), dim=-1)
        if x.dtype != torch.bfloat16:
            return coarse, normalize(x, dim=-1) @ text.transpose(1, 2) / self.temperature
        with torch.autocast(x.device.type, enabled=False):  # scores of 8 bits would have ties
            return coarse, normalize(x.float(), dim=-1) @ text.float().transpose(1, 2) / self.temperature

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Cross entropies of both branches' highest values, and how far "normal" is apart. One class will do.

        An anomalous video of no known class takes no part in the fine term. Raises ValueError without `bag.classes`.
        """
        coarse, fine = fold(out.aux["coarse"]), fold(out.aux["fine"])  # (N, T), (N, T, C + 1)
        crops = len(coarse) // len(bag.labels)
        mask, labels = spread(bag.mask, crops), spread(bag.labels, crops)
        k = sixteenth(mask)
        normal, others = normalize(self.text[:1], dim=-1), normalize(self.text[1:], dim=-1)
        return {
            "coarse": binary_cross_entropy(topk_mean(coarse.sigmoid(), mask, k), labels),
            "fine": self._aligned(fine, mask, spread(self._shown(bag), crops), k),
            "apart": self.apart * (others @ normal.T).abs().sum() / max(len(self.classes), 1),
        }

    def _aligned(self, fine: Tensor, mask: Tensor, shown: Tensor, k: Tensor) -> Tensor:
        """Cross entropy of each class's k highest logits against what a video shows, in equal shares; -> ()."""
        count = fine.shape[-1]
        flat = fine.transpose(1, 2).flatten(0, 1)  # a row for each video and class
        best = topk_mean(flat, spread(mask, count), spread(k, count)).reshape(-1, count)
        known = shown.sum(1) > 0
        share = shown / shown.sum(1, keepdim=True).clamp(min=1)
        found = -(share * best.log_softmax(dim=1)).sum(1)
        return found.sum() / known.sum().clamp(min=1)

    def _shown(self, bag: Bag) -> Tensor:
        """(B, C + 1): 1 for what a video shows, "normal" first."""
        if self.classes and (bag.classes is None or bag.classes.shape[1] != len(self.classes)):
            found = "none" if bag.classes is None else f"{bag.classes.shape[1]}"
            raise ValueError(f"vadclip was made for {len(self.classes)} classes, the bag has {found}")
        anomalous = bag.labels[:, None]
        if bag.classes is None:
            return 1 - anomalous
        return torch.cat([1 - anomalous, bag.classes.to(anomalous.dtype) * anomalous], dim=1)

    def published(self) -> Published:
        """The authors' names. Their files hold a whole CLIP too, whose text side stored vectors replace here."""
        names = {"frame_position_embeddings.weight": "positions"}
        for i in range(len(self.blocks)):
            attention = {"in_proj_weight": "inputs.weight", "in_proj_bias": "inputs.bias"}
            attention |= {f"out_proj.{p}": f"out.{p}" for p in ("weight", "bias")}
            names |= {f"temporal.resblocks.{i}.attn.{a}": f"blocks.{i}.attention.{b}" for a, b in attention.items()}
            parts = {"ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "mlp.wide", "mlp.c_proj": "mlp.back"}
            names |= _both({f"temporal.resblocks.{i}.{a}": f"blocks.{i}.{b}" for a, b in parts.items()})
        for n, part in ((1, "alike"), (3, "near")):
            names |= {f"gc{n + j}.weight": f"{part}.{j}.weight" for j in (0, 1)}
            names |= _both({f"gc{n}.residual": f"{part}.0.residual"})
        names |= _both({"linear": "join", "classifier": "classifier"})
        for theirs, ours in (("mlp1", "text_mlp"), ("mlp2", "coarse_mlp")):
            names |= _both({f"{theirs}.c_fc": f"{ours}.wide", f"{theirs}.c_proj": f"{ours}.back"})
        width = self.positions.shape[1]
        unused: dict[str, tuple[int, ...]] = {"disAdj.sigma": (1,), "text_prompt_embeddings.weight": (77, width)}
        if width == 512:  # there is no CLIP ViT-B/16 of another width
            unused |= clip_shapes()
        own = {"text"} | ({"project.weight", "project.bias"} if self.project is not None else set())
        need = "fine scores compare with the classes' texts: --set head.classes=[NAME,...] --set head.prompts=FILE.npz"
        notes = (need,) if self.score == "fine" and self.made_up else ()
        return Published(names, unused, extra=frozenset(own), notes=notes, source="https://github.com/nwpu-zxr/VadCLIP")

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Sizes and layers. Windows and classes leave no trace: the recipe has the windows, pass the classes."""
        length, width = shapes["frame_position_embeddings.weight"]
        layers = sum(name.endswith(".attn.in_proj_weight") and name.startswith("temporal.") for name in shapes)
        return {"rgb": width}, {"width": width, "length": length, "layers": layers}


def _both(names: Mapping[str, str]) -> dict[str, str]:
    """Weights and biases of those layers."""
    return {f"{a}.{p}": f"{b}.{p}" for a, b in names.items() for p in ("weight", "bias")}


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """The CLIP ViT-B/16 inside the authors' files, by their names."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (197, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 16, 16),
        **{f"visual.{norm}.{p}": (768,) for norm in ("ln_pre", "ln_post") for p in ("weight", "bias")},
        "positional_embedding": (77, 512),
        "token_embedding.weight": (49408, 512),
        "ln_final.weight": (512,),
        "ln_final.bias": (512,),
        "text_projection": (512, 512),
        "logit_scale": (),
    }
    for side, width in (("visual.", 768), ("", 512)):
        for i in range(12):
            sizes = {"attn.in_proj_": 3 * width, "mlp.c_fc.": 4 * width, "attn.out_proj.": width, "mlp.c_proj.": width}
            for name, out in sizes.items():
                into = 4 * width if name == "mlp.c_proj." else width
                shapes[f"{side}transformer.resblocks.{i}.{name}weight"] = (out, into)
                shapes[f"{side}transformer.resblocks.{i}.{name}bias"] = (out,)
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{side}transformer.resblocks.{i}.{norm}.{p}": (width,) for p in ("weight", "bias")}
    return {f"clipmodel.{name}": shape for name, shape in shapes.items()}
