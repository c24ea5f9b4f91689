"""What all connectors use: base of settings, threads, log throttling, private files. Imports no other room."""
