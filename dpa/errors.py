"""The one kind of error that is the user's to mend: commands print it as a single line and exit with status 2."""


class InputError(ValueError):
    """Bad input; the message names the file, the record and the fix."""
