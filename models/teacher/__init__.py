"""The teacher: a text model that learns from the shop's own log what a query and an item have to do with each other.

Torch lives here and is imported by the modules that compute with it alone: templates, samples and the static reader do
without.
"""
