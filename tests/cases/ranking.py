SMALL = {}
VARIANTS = [{"as_published": True, "l2": 1e-3}, {"topk": 3}]
