SMALL = {"width": 6, "length": 8, "window": 4, "layers": 1}
VARIANTS = [{"as_published": True}, {"score": "fine"}]
# Planted events are two or three clips long and begin anywhere; the graph of near segments blurs their borders.
REACHES = {"auc": 0.9, "ano_auc": 0.8}
LEARNS = {
    "head": {"width": 16, "length": 32, "window": 2},
    "data": {"resample": "pick"},  # as published
    "train": {"steps": 60, "optimizer": {"name": "adam", "lr": 4e-3, "weight_decay": 1e-2}},
}
