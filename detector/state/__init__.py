"""What is remembered of every stream: rows, tables, cache, the network's states. No clock, no Kafka."""
