SMALL = {"channels": [32, 32], "dropout": 0.0}
VARIANTS = [{"kernel": 3, "channels": [16, 16]}]
# clips as they are scored in a test: of stretched ones a causal net learns what follows an event, not the event
LEARNS = {"data": {"resample": "full"}, "train": {"steps": 100, "optimizer": {"name": "adam", "lr": 2e-3}}}
