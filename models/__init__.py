"""What is learned, and how. Nothing here knows Kafka, a clock or a file."""
