"""The live worker: one Faust app around the three stages, one object for each partition of a stage."""
