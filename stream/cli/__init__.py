"""The command ``heft``."""
