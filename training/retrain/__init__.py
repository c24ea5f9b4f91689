"""A challenger trained on recent windows, on one or several processes, and judged. May import all of `training`."""
