"""The daemon's HTTP port (`server.HttpServer`): /metrics, /livez, /readyz. Their contents come from the caller.

May import `common` and the files at the top of `connectors`.
"""
