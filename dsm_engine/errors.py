"""The one error type for faults of the user's input."""


class DsmError(Exception):
    """A fault of the user's: its message says what is wrong, where (path:line) and what to do.

    The command line prints the message as one line and exits with code 2; any other exception is
    a fault of the engine's and keeps its traceback.
    """
