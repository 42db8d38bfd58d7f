"""The same stages over a log, without Kafka, and the report of what they learned."""
