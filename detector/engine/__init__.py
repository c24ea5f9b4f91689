"""EventBatch -> Step: the one way of a batch through all stages. No clock, no network, no file."""
