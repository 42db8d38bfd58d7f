"""The networks that read texts, and the folders they lie in."""
