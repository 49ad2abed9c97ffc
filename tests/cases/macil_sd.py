SMALL = {"hidden": 16, "attention_heads": 2, "feedforward": 16}
VARIANTS = [{"as_published": True}]
LEARNS = {
    "train": {
        "steps": 80,
        "sampler": "mixed",
        "batch": 8,
        "samples": "crops",
        "optimizer": {"name": "adam", "lr": 5e-3},
    }
}
