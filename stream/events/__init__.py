"""What comes in and what goes between the stages: events on the wire, messages, event logs, watermarks."""
