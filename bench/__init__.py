"""Comparisons with the usual parts: ratios measured alternately in one run, on the same log, on one core."""
