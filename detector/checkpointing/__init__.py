"""One point in the stream made durable, and the way back to it. May use `engine` and what is below it.

`checkpointer.Checkpointer` commits and rolls back in the local store, `changelog_checkpoint` in a transaction of Kafka,
whose states `recovery` brings back. `store` is the SQLite database of states.
"""
