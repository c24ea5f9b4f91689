"""Bytes into columns of events, with a reason for every record that is refused. Touches `batches` and `common` only."""
