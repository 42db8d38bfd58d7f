"""Settings of every test."""

from hypothesis import settings

collect_ignore = ["support"]  # it holds no tests, and parts of it need the teacher's libraries

# The first example of a property compiles the kernels it runs, which takes seconds in a fresh clone: no example of
# ours is refused for its time.
settings.register_profile("heft", deadline=None)
settings.load_profile("heft")
