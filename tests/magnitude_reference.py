"""RTFM's network and loss in plain numpy and float64, on the authors' own tensor names; for rtfm, tevad and s3r.

Written from what the papers and the authors' code compute, one video and one crop at a time; nothing here calls
mil.layers or mil.losses. A batch is a list of sequences (T_i, D), never padded.
"""

import numpy as np
import torch

from mil.published import give_back


def shake(head, seed=0):
    """Random numbers in everything, batch statistics included, so that nothing hides behind a 0 or a 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in head.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point() and "dictionary" not in name:
            value.copy_(0.6 * torch.randn(value.shape, generator=generator))
    return head


def state_of(head):
    """The head's tensors under the authors' names."""
    return {n: v.double().numpy() for n, v in give_back(head, head.published(), {}).items()}


def sequences(bag, name=None):
    """Videos in order, and of each its crops: [[(T_i, D), ...], ...]."""
    x = (bag.x if name is None else bag.features[name].expand(-1, bag.crops, -1, -1)).double().numpy()
    return [[x[b, k, : int(bag.mask[b].sum())] for k in range(x.shape[1])] for b in range(len(x))]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def conv1d(x, weight, bias=None, dilation=1):
    """Zero-padded to the same length; (T, D), (O, D, k) -> (T, O)."""
    reach = weight.shape[2] // 2
    out = np.zeros((len(x), weight.shape[0])) + (0 if bias is None else bias)
    for t in range(len(x)):
        for tap in range(weight.shape[2]):
            at = t + (tap - reach) * dilation
            if 0 <= at < len(x):
                out[t] += weight[:, :, tap] @ x[at]
    return out


def batch_norm(seqs, state, name, training):
    if training:
        rows = np.concatenate(seqs)
        mean, variance = rows.mean(0), rows.var(0)
    else:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return [(x - mean) / np.sqrt(variance + 1e-5) * weight + bias for x in seqs]


def group_norm(x, weight, bias, groups):
    out = np.zeros_like(x)
    size = x.shape[1] // groups
    for g in range(groups):
        part = x[:, g * size : (g + 1) * size]
        out[:, g * size : (g + 1) * size] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return out * weight + bias


def unit(seqs, state, name, training, dilation=1, groups=None):
    """RTFM: convolution, ReLU, batch norm. S3R (`groups`): convolution, group norm, ReLU."""
    bias = state.get(f"{name}.0.bias")
    seqs = [conv1d(x, state[f"{name}.0.weight"], bias, dilation) for x in seqs]
    if groups:
        return [np.maximum(group_norm(x, state[f"{name}.1.weight"], state[f"{name}.1.bias"], groups), 0) for x in seqs]
    return batch_norm([np.maximum(x, 0) for x in seqs], state, f"{name}.2", training)


def mtn(seqs, state, name, *, training=False, groups=None):
    """The authors' Aggregate: [(T_i, D)] -> [(T_i, D)]; `groups`: (of the branches, of the last) for S3R."""
    inner, outer = groups or (None, None)
    near = [unit(seqs, state, f"{name}.conv_{i + 1}", training, d, inner) for i, d in enumerate((1, 2, 4))]
    start = [np.maximum(conv1d(x, state[f"{name}.conv_4.0.weight"]), 0) for x in seqs]
    query, key, value, last = (
        f"{name}.non_local.{n}" for n in (("query", "key", "value", "alter") if groups else ("theta", "phi", "g", "W"))
    )
    mixed = []
    for x in start:
        q, k, v = (conv1d(x, state[f"{n}.weight"], state[f"{n}.bias"]) for n in (query, key, value))
        y = np.zeros_like(v)
        for i in range(len(x)):
            for j in range(len(x)):
                y[i] += (q[i] @ k[j]) / len(x) * v[j]
        mixed.append(conv1d(y, state[f"{last}.0.weight"], state[f"{last}.0.bias"]))
    far = [a + b for a, b in zip(batch_norm(mixed, state, f"{last}.1", training), start, strict=True)]
    together = [np.concatenate(parts, axis=1) for parts in zip(*near, far, strict=True)]
    fused = unit(together, state, f"{name}.conv_5", training, 1, outer)
    return [a + b for a, b in zip(fused, seqs, strict=True)]


def three_layers(x, state, names):
    """Logits of three fully connected layers, ReLU after the first two; (..., D) -> (...)."""
    for i, name in enumerate(names):
        x = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        x = np.maximum(x, 0) if i < 2 else x[..., 0]
    return x


def losses(
    scores, features, labels, *, published, topk=3, margin=100.0, alpha=1e-4, smooth=8e-4, sparse=8e-3, keep=None
):
    """Scores [(T_i,)], features [(K, T_i, D)]; `keep` [(T_i,)]: factors of the magnitudes in the selection."""
    videos, sizes = [], []
    for b, (s, f) in enumerate(zip(scores, features, strict=True)):
        magnitude = np.zeros(len(s))
        for t in range(len(s)):
            magnitude[t] = np.mean([np.sqrt((crop[t] ** 2).sum()) for crop in f]) * (1 if keep is None else keep[b][t])
        best = sorted(range(len(s)), key=lambda t: -magnitude[t])[:topk]
        videos.append(np.mean([s[t] for t in best]))
        sizes.append([np.sqrt((np.mean([crop[t] for t in best], axis=0) ** 2).sum()) for crop in f])
    bce = np.mean([-np.log(v if y == 1 else 1 - v) for v, y in zip(videos, labels, strict=True)])
    high = [b for b, y in enumerate(labels) if y == 1]
    low = [b for b, y in enumerate(labels) if y == 0]
    pairs = list(zip(high, low, strict=False)) if published else [(a, n) for a in high for n in low]
    apart = [(abs(margin - sizes[a][k]) + sizes[n][k]) ** 2 for a, n in pairs for k in range(len(sizes[a]))]
    flat = np.concatenate([scores[b] for b in high])
    chains = [flat] if published else [scores[b] for b in high]
    return {
        "bce": bce,
        "magnitude": alpha * np.mean(apart),
        "smooth": smooth * sum((c[t + 1] - c[t]) ** 2 for c in chains for t in range(len(c) - 1)),
        "sparse": sparse * np.sqrt((flat**2).sum()),
    }
