"""The running daemon: its loop, its parts put together from settings, retraining, health. Stands on `checkpointing`."""
