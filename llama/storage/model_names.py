"""Names of models: short ones of the released models, and repositories on the two hubs.

    model_name("llama3.2")                            # llama3.2:3b, the default size; it chats
    model_name("https://huggingface.co/owner/name")   # hf:owner/name
    released("llama3.1:8b-text").repo                 # meta-llama/Llama-3.1-8B, the base model

Short names are those of Ollama: a family, a size, and `-text` for the base model; `-instruct` and
`-chat` may follow the others. Meta's repositories on Hugging Face ask for a license to be accepted;
those on ModelScope and the open copies do not.
"""

import re
from typing import NamedTuple

_META = "meta-llama/"


class ReleasedModel(NamedTuple):
    """A released model.

    parameters   how many, as `llama info` prints them
    repo         Meta's repository on Hugging Face
    modelscope   the repository on ModelScope
    open_copy    a copy on Hugging Face that needs no account; None where none is known
    """

    name: str
    parameters: str
    repo: str
    modelscope: str
    open_copy: str | None

    @property
    def is_chat(self) -> bool:
        return not self.name.endswith("-text")

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]

    @property
    def size(self) -> str:
        """As in its name: 1b, 70b."""
        return self.name.partition(":")[2].removesuffix("-text")

    @property
    def license(self) -> str:
        return _LICENSES[self.family]

    @property
    def meta_folders(self) -> list[str]:
        """What its folder may be called behind Meta's signed URLs, the likeliest first."""
        name = self.repo.removeprefix(_META)
        if self.family == "llama2":
            return [name.lower().removesuffix("-hf")]
        short = name.removeprefix("Meta-")
        names = [short, f"Meta-{short}"] if self.family in ("llama3", "llama3.1") else [short]
        return [f"{name}-MP8" for name in names] if self.size == "405b" else names


# Short name, parameters, Meta's repository on Hugging Face, ModelScope's, an open copy.
_TABLE = """
llama3.3:70b        70.6B   Llama-3.3-70B-Instruct     LLM-Research/Llama-3.3-70B-Instruct        unsloth/Llama-3.3-70B-Instruct
llama3.2:1b         1.24B   Llama-3.2-1B-Instruct      LLM-Research/Llama-3.2-1B-Instruct         unsloth/Llama-3.2-1B-Instruct
llama3.2:1b-text    1.24B   Llama-3.2-1B               LLM-Research/Llama-3.2-1B                  unsloth/Llama-3.2-1B
llama3.2:3b         3.21B   Llama-3.2-3B-Instruct      LLM-Research/Llama-3.2-3B-Instruct         unsloth/Llama-3.2-3B-Instruct
llama3.2:3b-text    3.21B   Llama-3.2-3B               LLM-Research/Llama-3.2-3B                  unsloth/Llama-3.2-3B
llama3.1:8b         8.03B   Llama-3.1-8B-Instruct      LLM-Research/Meta-Llama-3.1-8B-Instruct    unsloth/Llama-3.1-8B-Instruct
llama3.1:8b-text    8.03B   Llama-3.1-8B               LLM-Research/Meta-Llama-3.1-8B             NousResearch/Meta-Llama-3.1-8B
llama3.1:70b        70.6B   Llama-3.1-70B-Instruct     LLM-Research/Meta-Llama-3.1-70B-Instruct   NousResearch/Meta-Llama-3.1-70B-Instruct
llama3.1:70b-text   70.6B   Llama-3.1-70B              LLM-Research/Meta-Llama-3.1-70B            -
llama3.1:405b       405.9B  Llama-3.1-405B-Instruct    LLM-Research/Meta-Llama-3.1-405B-Instruct  -
llama3.1:405b-text  405.9B  Llama-3.1-405B             LLM-Research/Meta-Llama-3.1-405B           -
llama3:8b           8.03B   Meta-Llama-3-8B-Instruct   LLM-Research/Meta-Llama-3-8B-Instruct      NousResearch/Meta-Llama-3-8B-Instruct
llama3:8b-text      8.03B   Meta-Llama-3-8B            LLM-Research/Meta-Llama-3-8B               NousResearch/Meta-Llama-3-8B
llama3:70b          70.6B   Meta-Llama-3-70B-Instruct  LLM-Research/Meta-Llama-3-70B-Instruct     NousResearch/Meta-Llama-3-70B-Instruct
llama3:70b-text     70.6B   Meta-Llama-3-70B           LLM-Research/Meta-Llama-3-70B              -
llama2:7b           6.74B   Llama-2-7b-chat-hf         modelscope/Llama-2-7b-chat-ms              NousResearch/Llama-2-7b-chat-hf
llama2:7b-text      6.74B   Llama-2-7b-hf              modelscope/Llama-2-7b-ms                   NousResearch/Llama-2-7b-hf
llama2:13b          13.0B   Llama-2-13b-chat-hf        modelscope/Llama-2-13b-chat-ms             NousResearch/Llama-2-13b-chat-hf
llama2:13b-text     13.0B   Llama-2-13b-hf             modelscope/Llama-2-13b-ms                  NousResearch/Llama-2-13b-hf
llama2:70b          69.0B   Llama-2-70b-chat-hf        modelscope/Llama-2-70b-chat-ms             NousResearch/Llama-2-70b-chat-hf
llama2:70b-text     69.0B   Llama-2-70b-hf             modelscope/Llama-2-70b-ms                  NousResearch/Llama-2-70b-hf
"""  # noqa: E501
_LICENSES = {
    "llama3.3": "Llama 3.3",
    "llama3.2": "Llama 3.2",
    "llama3.1": "Llama 3.1",
    "llama3": "Meta Llama 3",
    "llama2": "Llama 2",
}
_DEFAULT_SIZES = {
    "llama3.3": "70b",
    "llama3.2": "3b",
    "llama3.1": "8b",
    "llama3": "8b",
    "llama2": "7b",
}
# By their short names.
RELEASED = {
    name: ReleasedModel(name, parameters, _META + repo, modelscope, None if copy == "-" else copy)
    for name, parameters, repo, modelscope, copy in map(str.split, _TABLE.strip().splitlines())
}
_PAGES = {
    re.compile(r"(https?://)?(huggingface\.co|hf\.co)/([^/]+/[^/]+?)/?"): "hf",
    re.compile(r"(https?://)?(www\.)?modelscope\.cn/models/([^/]+/[^/]+?)/?"): "ms",
}


def released(name: str) -> ReleasedModel | None:
    """The released model that a short name stands for, in any of its spellings, or None."""
    family, _, tag = name.lower().partition(":")
    default = _DEFAULT_SIZES.get(family)
    if default is None:
        return None
    size, _, kind = tag.partition("-")
    if size in ("text", "base", "instruct", "chat"):
        size, kind = default, size
    size = default if size in ("", "latest") else size
    suffix = {"": "", "instruct": "", "chat": "", "text": "-text", "base": "-text"}.get(kind)
    return None if suffix is None else RELEASED.get(f"{family}:{size}{suffix}")


def model_name(text: str) -> str:
    """The one spelling of a name: short, without `:latest`; `hf:owner/name` for a hub's page."""
    if model := released(text):
        return model.name
    for page, hub in _PAGES.items():
        if match := page.fullmatch(text):
            return f"{hub}:{match[3]}"
    return text.removesuffix(":latest")
