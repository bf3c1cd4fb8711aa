"""The LLM core: a process of its own, with one llama.cpp context."""

import os

# Read by libgomp when llama.cpp is loaded. Its threads else spin at every barrier, and when
# anything else wants a processor they spin in vain: 40 times slower with two loads on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
