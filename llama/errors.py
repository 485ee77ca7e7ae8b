"""Input errors, which the command line prints in one message without a traceback.

Each is also the built-in exception that Python programs expect in its place. Any other exception
is a defect of this package, or of the machine (`OSError`, `torch.OutOfMemoryError`).
"""


class InputError(ValueError):
    """A value, a file's content or a combination of settings that can't be used."""


class InputTypeError(InputError, TypeError):
    """A value of the wrong type."""


class ContextLengthError(InputError):
    """A prompt of `num_tokens`, where at most `max_seq_len` fit."""

    def __init__(self, name: str, num_tokens: int, max_seq_len: int, reason: str) -> None:
        super().__init__(name, num_tokens, max_seq_len, reason)
        self.num_tokens, self.max_seq_len = num_tokens, max_seq_len

    def __str__(self) -> str:
        name, *_, reason = self.args
        return f"{name} has {self.num_tokens} tokens, but {reason}"


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that is needed and does not exist."""


def message(error: Exception) -> str:
    """The text of an error; of a system error the file and the reason, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
