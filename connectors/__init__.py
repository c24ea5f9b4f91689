"""The edges: bytes in, bytes out.

What crosses the border to the detector stands at the top: `batches` (columns of events, scores, alerts), `protocols`
(what a source and a sink must do) and `encode` (their JSON). Knows neither `detector` nor `training`.
"""
