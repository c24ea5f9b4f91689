"""The base of this package's errors that are meant for a person; `connectors.errors` has its own, unknown here."""


class UserError(Exception):
    """Something that a user or operator can mend; `longwatch` prints its text without a traceback and exits."""
