# chunks of four events' length would blur what the learning test asks for; test_head_sfa.py has the longer ones
SMALL = {"attention": 8, "hops": 2, "hidden": 8, "chunk": 1}
VARIANTS = [{"chunk": 2}]
