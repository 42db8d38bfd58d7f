"""Where the teacher's libraries are not installed its modules cannot be imported, not even for their examples."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["src/heft/models/teacher/*"]
