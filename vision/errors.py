"""What a user did wrong, said so that he can mend it."""


class UserError(ValueError):
    """A mistake in the input, not in the program.

    The message names the file, the line or object and the value, and says what to do. Scripts print it
    without a traceback and end with exit code 2.
    """


class NotInstalled(UserError):
    """A library that has to be installed first."""
