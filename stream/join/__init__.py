"""Four unordered streams become one ordered log of records. Pure: no clock, no network."""
