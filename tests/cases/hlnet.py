SMALL = {"hidden": [16, 12], "graph": 8, "approximator": [8, 6]}
VARIANTS = [{"as_published": True}, {"score": "online"}]
# Planted events are two or three clips long and begin anywhere; graphs of near segments, and a branch that sees four
# segments back, blur their borders.
REACHES = {"auc": 0.9, "ano_auc": 0.8}
LEARNS = {
    "head": {"dropout": 0.1},
    "data": {"resample": "pick"},  # as published
    "train": {"steps": 75, "optimizer": {"name": "adam", "lr": 6e-3, "weight_decay": 1e-2}},
}
