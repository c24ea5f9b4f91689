"""Alerts as signed HTTP requests (`sink.WebhookSink`), delivered from a durable outbox.

May import `http_client`, `common` and the files at the top of `connectors`.
"""
