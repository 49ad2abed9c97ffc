SMALL = {"width": 4, "hidden": [16, 8]}
VARIANTS = [{"as_published": True}, {"fusion": "add"}, {"fusion": "product"}]
# a dropout of 0.7 is for 2048 features, not for 8
LEARNS = {
    "head": {"dropout": 0.3},
    "data": {"count": 16},
    "train": {"steps": 40, "optimizer": {"name": "adam", "lr": 6e-3}},
}
