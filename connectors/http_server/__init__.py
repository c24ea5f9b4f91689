"""The daemon's HTTP port: /metrics, /livez, /readyz. Knows nothing of what it serves."""
