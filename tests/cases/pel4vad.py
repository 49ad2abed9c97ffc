SMALL = {"attention": 8, "hidden": (16, 8), "kernel": 3, "window": 5}
VARIANTS = [{"norm": False, "several": "first"}, {"as_published": True}]
LEARNS = {
    "head": {"kernel": 1},  # planted events last two or three clips, and the kernel looks back only
    "train": {
        "steps": 120,
        "sampler": "mixed",
        "batch": 16,
        "samples": "crops",
        "optimizer": {"name": "adam", "lr": 5e-3},
    },
}
