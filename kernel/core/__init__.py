"""The LLM core: a process of its own, with one llama.cpp context."""

import os

# Read by libgomp when llama.cpp is loaded. By default its threads spin at each barrier until the
# last has come, in vain when anything else wants a processor: 40 times slower with two loads on
# two cores. To spin for some microseconds and then sleep is also a third quicker than to sleep at
# once (bench/RESULTS.md has the figures).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
