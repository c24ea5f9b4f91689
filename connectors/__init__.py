"""The edges: bytes in, bytes out.

What crosses the border to the detector is at the top: `batches` (columns of events, scores, alerts), `protocols` (what
a source and a sink must do), `encode` (their JSON) and `errors`. Below are the rooms: `kafka`, `files` and `notify`
implement the protocols, `decode` turns records into events, `http_client`, `http_server` and `common` serve them.
Knows neither `detector` nor `training`.
"""
