"""How the state of a stage is encoded, and where its snapshots lie."""
