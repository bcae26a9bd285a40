"""Settings for the properties."""

from hypothesis import settings

# No deadline: how long an example takes says nothing on a shared machine.
settings.register_profile("core", deadline=None, database=None)
settings.load_profile("core")
