"""What is raised about states, by those that hold them and those that keep them."""

from connectors.errors import UserError


class StateError(UserError):
    """State that cannot be kept or used; the text names the directory or stream, and says what to do."""
