"""What several tests share: builders, live workers, reference implementations, processes that misbehave on demand."""
