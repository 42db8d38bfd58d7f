"""Scores of a teacher go along with the records; nothing ever waits for one."""
