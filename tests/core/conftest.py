"""Hypothesis' settings for the tests of the core."""

from hypothesis import settings

# No deadline: the time of an example depends on what else runs on the machine.
settings.register_profile("core", deadline=None, database=None)
settings.load_profile("core")
