"""Importance-weighted online learning for e-commerce search and recommendation.

``heft.stream`` is what happens to an event, and when; ``heft.models`` is what is learned, and how. Both lie at the top
of the project, and are linked from here so that everything installed has one name.
"""
