"""Everything that can be set: read from a file and the environment, checked, and told."""
