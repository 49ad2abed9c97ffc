SMALL = {"hidden": [32, 16], "dropout": 0.2}
# the loss bounds a span alone, so without sparsity a seed may learn everything upside down
LEARNS = {
    "head": {"sparse": 0.05, "kernel": 3},
    "data": {"count": 16},
    "train": {"steps": 80, "optimizer": {"name": "adam", "lr": 5e-3}},
}
