SMALL = {"width": 16, "hidden": [16, 8], "key": 8, "gate": 8}
VARIANTS = [{"as_published": True}]
# a dropout of 0.7 is for 2048 features, not for 8
LEARNS = {
    "head": {"dropout": 0.3},
    "data": {"count": 16},
    "train": {"steps": 40, "optimizer": {"name": "adam", "lr": 6e-3}},
}
