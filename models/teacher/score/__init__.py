"""A teacher's folder becomes scores, each backend timed where it runs."""
