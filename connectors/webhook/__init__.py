"""Alerts as signed HTTP requests from a durable outbox. Stands on `http_client`."""
