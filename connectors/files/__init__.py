"""Files as source (`source.FileSource`) and sinks (`sinks`): CSV and JSON lines in, JSON lines out; labelled incidents.

May import `decode`, `common` and the files at the top of `connectors`.
"""
