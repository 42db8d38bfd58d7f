"""The ordered log of a shard becomes a model, and what is known about how good it is. Pure."""
