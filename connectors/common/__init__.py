"""What every connector stands on: settings' base, threads, log throttling, private files. Touches no other room."""
