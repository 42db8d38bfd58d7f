"""What a teacher is trained on: examples of a log or of judgements."""
