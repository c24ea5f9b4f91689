"""Files as source and sink: CSV and JSON lines in, JSON lines out; labelled incidents. Stands on `decode`."""
