"""Errors that a user can put right."""


class InputError(ValueError):
    """A file or an option that the user gave cannot be used.

    The message is one line that names the file or the option and says what was expected; command line
    entries print it alone and leave with exit code 2.
    """


class RunError(RuntimeError):
    """A run cannot go on, through no fault of its input: a full disk, a dead process, losses that are not finite.

    The message is one line that names the cause and says what to do; command line entries print it alone and leave
    with exit code 3. What the last checkpoint holds is not lost.
    """
