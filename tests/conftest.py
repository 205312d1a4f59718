"""Settings of the whole suite."""

import os

from hypothesis import settings

# A deadline is a timing assertion: on a busy machine it fails tests that hold. CI repeats the same examples at every run; by hand
# new ones are drawn.
settings.register_profile("cero_rl", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cero_rl")
