"""Settings of every test."""

from hypothesis import settings

# The first example of a property compiles the kernels it runs, which takes seconds in a fresh clone: no example of
# ours is refused for its time.
settings.register_profile("heft", deadline=None)
settings.load_profile("heft")
