"""The one exception that a person is meant to read. Imports nothing of darts_lite."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do about it.

    The command line prints it and exits with status 2; the library lets it pass.
    """
