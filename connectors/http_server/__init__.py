"""The daemon's HTTP port (`server.HttpServer`): /metrics, /livez, /readyz, and an app's pages, which the caller gives.

May import `common` and the files at the top of `connectors`.
"""
