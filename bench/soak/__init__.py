"""`make soak`: real workers under traffic that never stops, and everything that may happen to them."""
