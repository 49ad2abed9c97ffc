SMALL = {"hidden": 16, "attention_heads": 2, "feedforward": 16}
VARIANTS = [{"as_published": True}]
LEARNS = {
    "data": {"count": 16},
    "train": {
        "steps": 50,
        "sampler": "mixed",
        "batch": 8,
        "samples": "crops",
        "optimizer": {"name": "adam", "lr": 1e-2},
    },
}
