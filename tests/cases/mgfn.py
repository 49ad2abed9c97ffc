SMALL = {"dims": [16, 16], "depths": [1, 1], "head_dim": 8}
VARIANTS = [{"as_published": True}]
# a margin of 200 is for magnitudes of 1024 channels; of so few videos the glance learns the names, but for the decay
LEARNS = {
    "head": {"dropout": 0.0, "margin": 10.0, "apart": 0.01},
    "data": {"count": 16},
    "train": {"steps": 100, "optimizer": {"name": "adam", "lr": 3e-3, "weight_decay": 0.05}},
}
