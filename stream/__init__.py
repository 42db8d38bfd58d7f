"""What happens to an event, and when: the wire, the join, the stages, Kafka, Faust and replay."""
