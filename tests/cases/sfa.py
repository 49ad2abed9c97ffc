# chunks of four events' length would blur what the learning test asks for; test_head_sfa.py has the longer ones
SMALL = {"attention": 8, "hops": 2, "hidden": 8, "chunk": 1}
VARIANTS = [{"chunk": 2}]
# steps and segments are what costs here
LEARNS = {"data": {"count": 16}, "train": {"steps": 60, "optimizer": {"name": "adam", "lr": 5e-3}}}
