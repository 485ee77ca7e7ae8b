"""What is wrong with the input. The command line prints it in one message, without a traceback.

Each is also the built-in exception that Python programs expect in its place. Any other exception
is a defect of this package, or of the machine (`OSError`, `torch.OutOfMemoryError`).
"""


class InputError(ValueError):
    """A value, a file's content or a combination of settings that can't be used."""


class InputTypeError(InputError, TypeError):
    """A value of another type than the one that is asked for."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that has to be there and is not."""
