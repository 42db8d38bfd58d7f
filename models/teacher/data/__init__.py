"""What a teacher learns from: samples of a shop's own log, and human judgements."""
