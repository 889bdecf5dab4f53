"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Bad input: one line that names the thing, its value, and the way out.

    The command lines print it after 'error: ' and exit with code 2; from Python it is a ValueError.
    """
