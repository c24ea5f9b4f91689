"""What is raised about states, by those that hold them and those that keep them."""


class StateError(Exception):
    """State that cannot be kept or used; the text names the directory or stream, and says what to do."""
