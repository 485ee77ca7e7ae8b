"""Where the model is that comes with this project: the default of commands that need some model."""

from pathlib import Path

from llama.errors import MissingFileError


def bundled_model() -> str:
    """The folder `params/tiny` beside the package.

    Raises MissingFileError where the package is installed without it.
    """
    folder = Path(__file__).parents[2] / "params" / "tiny"
    if not (folder / "params.json").exists():
        raise MissingFileError(
            "no model is named, and the bundled one (params/tiny) is not beside the package: name "
            "a checkpoint folder, or a model that was pulled (`llama pull llama3.2:1b`)"
        )
    return str(folder)
