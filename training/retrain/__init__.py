"""A challenger from recent windows, on one or several processes, and whether it is better. The top room of training."""
