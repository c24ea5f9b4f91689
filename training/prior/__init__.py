"""The shipped forecasters: synthetic series, and the training on them. May import `learn` and `network`."""
