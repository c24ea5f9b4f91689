"""Compiled functions on arrays and records: who is admitted, how surprising an event is, when that is an incident."""
