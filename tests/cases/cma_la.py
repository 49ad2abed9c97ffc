SMALL = {"attention": 8, "hidden": (16, 8), "kernel": 2}
VARIANTS = [{"as_published": True}]
LEARNS = {
    "data": {"resample": "full"},
    "train": {
        "steps": 120,
        "sampler": "mixed",
        "batch": 16,
        "samples": "crops",
        "optimizer": {"name": "adam", "lr": 1e-2},
    },
}
