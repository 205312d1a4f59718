"""Settings of the whole suite."""

from hypothesis import settings

# A deadline is a timing assertion: on a busy machine it fails tests that hold.
settings.register_profile("cero_rl", deadline=None)
settings.load_profile("cero_rl")
