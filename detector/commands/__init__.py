"""One file for each command of `longwatch` besides `run`, and what only these need. Stands on `service`."""
