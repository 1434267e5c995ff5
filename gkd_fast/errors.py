"""Errors that a user can put right."""


class InputError(ValueError):
    """A file or an option that the user gave cannot be used.

    The message is one line that names the file or the option and says what was expected; command line
    entries print it alone and leave with exit code 2.
    """
