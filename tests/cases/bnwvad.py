SMALL = {"hidden": 32, "layers": 1, "heads": 2, "attention": 32, "ffn": 32}
VARIANTS = [{"as_published": True}, {"eps": 1e-3}]
# about a fifth of the segments of an anomalous video are planted here; the published share of a batch is twice that
LEARNS = {
    "head": {"batch_ratio": 0.2},
    "data": {"count": 12},
    "train": {"steps": 40, "clip_norm": 1.0, "optimizer": {"name": "adam", "lr": 1e-3}},
}
