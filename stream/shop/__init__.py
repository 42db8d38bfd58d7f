"""A simulated shop: the only place where the truth behind the clicks is known."""
