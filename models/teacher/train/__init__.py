"""Pre-training, fine-tuning and evaluation of a teacher."""
