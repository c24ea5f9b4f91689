"""Incidents and alerts told to people (`dispatcher.Dispatcher`): receivers of several kinds, one durable outbox.

May import `http_client`, `encode`, `common` and the files at the top of `connectors`.
"""
