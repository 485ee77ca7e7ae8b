"""Input errors, which the command line prints in one message without a traceback.

Each is also the built-in exception that Python programs expect in its place. Any other exception
is a defect of this package, or of the machine (`OSError`, `torch.OutOfMemoryError`).
"""


class InputError(ValueError):
    """A value, a file's content or a combination of settings that can't be used."""


class InputTypeError(InputError, TypeError):
    """A value of the wrong type."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that is needed and does not exist."""


def message(error: Exception) -> str:
    """The text of an error; of a system error the file and the reason, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
