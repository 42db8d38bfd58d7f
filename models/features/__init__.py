"""A slate becomes hashed slots: fields, crosses, and what the past knows of an item."""
