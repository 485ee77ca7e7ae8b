"""What an index remembers: its model, where its vectors come from, and the size of its chunks."""

from collections.abc import Mapping
from pathlib import Path

from llama.checkpoint.opening import open_checkpoint
from llama.errors import InputError
from llama.generation import Llama
from llama.retrieval.adding import absolute
from llama.retrieval.text_vectors import EmbeddingServer
from llama.storage.files import expand

_DEFAULT_MODEL = "tiny"  # the bundled one
_CHUNK_TOKENS = 256
_LEAST_CHUNK_TOKENS = 16


def new_settings(
    model: str | Path | Llama | None, embed: object, chunk_tokens: int | None
) -> dict[str, str]:
    """The settings of a new index; arguments and errors as for `Index.open`.

    The model is "" where it is a loaded one, which has no name.
    """
    name = _model_name(_DEFAULT_MODEL if model is None else model)
    if isinstance(model, Llama):
        context = model.engine.max_seq_len
    else:
        context = open_checkpoint(name).args.max_seq_len
    if chunk_tokens is None:
        chunk_tokens = min(_CHUNK_TOKENS, max(context // 8, _LEAST_CHUNK_TOKENS))
    if chunk_tokens < _LEAST_CHUNK_TOKENS:
        raise InputError(f"chunk_tokens must be {_LEAST_CHUNK_TOKENS} or more, got {chunk_tokens}")
    return {"model": name, "embed": _embed_name(embed), "chunk_tokens": str(chunk_tokens)}


def check_settings(
    path: str | Path,
    known: Mapping[str, str],
    model: str | Path | Llama | None,
    embed: object,
    chunk_tokens: int | None,
) -> None:
    """Raises InputError for arguments of `Index.open` that do not fit what the index remembers."""
    if chunk_tokens is not None and str(chunk_tokens) != known["chunk_tokens"]:
        raise InputError(
            f"{path} has chunks of {known['chunk_tokens']} tokens, not {chunk_tokens}; make a new "
            "index for others"
        )
    if embed is not None and _embed_name(embed) != known["embed"]:
        raise InputError(
            f"{path} was made with embed {known['embed']!r}, not {_embed_name(embed)!r}; make a "
            "new index for other vectors"
        )
    if embed is None and known["embed"] == "function":
        raise InputError(f"{path} has vectors of a function: give it as embed")
    if model is None and known["model"] == "":
        raise InputError(f"{path} was made with a loaded model: give a model")
    has_its_vectors = known["embed"] == "model" and known["model"]
    if has_its_vectors and isinstance(model, str | Path) and _model_name(model) != known["model"]:
        raise InputError(
            f"{path} has vectors of the model {known['model']}, which {model} can't ask; make a "
            "new index, or one without vectors (embed)"
        )


def _model_name(model: str | Path | Llama) -> str:
    """A folder from the root, so that it is found from everywhere; a pulled model as it is."""
    if isinstance(model, Llama):
        return ""
    return str(absolute(model)) if Path(expand(model)).exists() else str(model)


def _embed_name(embed: object) -> str:
    if isinstance(embed, EmbeddingServer):
        return f"{embed.url}#{embed.model}"
    if embed is None or embed == "model":
        return str(embed or "")
    if callable(embed):
        return "function"
    raise InputError(f"embed is 'model', an EmbeddingServer or a function, not {embed!r:.60}")
