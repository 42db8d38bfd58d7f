"""How much a sample counts, and what the teacher's scores are worth before they may say so."""
