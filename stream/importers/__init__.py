"""Public logs turned into heft event logs."""
