"""Errors that are meant for a person, and are raised in more than one room."""

from connectors.errors import UserError


class StateError(UserError):
    """State that cannot be kept or used; the text names the directory or stream, and says what to do."""


class BusyError(Exception):
    """The engine was not free in time; the text says so to whoever asked."""


class UsageError(UserError):
    """Options that cannot be meant together; the text names the command and what to give instead."""
