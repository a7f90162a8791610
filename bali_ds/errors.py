"""The one exception that stands for a user's mistake."""


class InputError(ValueError):
    """Input that cannot be used as it is: a file, a recipe, an argument.

    The message is one line that names the file, line or key, says what is wrong and what to do.
    Commands print it without a traceback and exit with status 2.
    """
