"""The modules of frozen nets, under the key names of their published weights."""
