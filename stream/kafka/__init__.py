"""Everything that speaks to a Kafka cluster, the brokers on this machine among it."""
