"""The shell around the teacher: it is asked here, and fine-tuned from here."""
