"""The base of all errors that are meant for a person: their text names what is wrong, where, and how to mend it."""


class UserError(Exception):
    """Something that a user or operator can mend; `longwatch` prints its text without a traceback and exits."""
