"""The shell around the teacher: here it is asked for scores, and fine-tuned."""
