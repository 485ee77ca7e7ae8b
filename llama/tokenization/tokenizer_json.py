"""Hugging Face's `tokenizer.json`, as far as it holds the same tokenizer as a file of ranks.

Llama 3's has the ranks as a vocabulary, the pattern that cuts text into words, the special tokens,
and a list of merges that repeats what the ranks imply: tiktoken needs no list, it joins those
neighbouring bytes that make the token of the lowest rank.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from llama.errors import InputError

FETCH_AGAIN = "if the file was cut off or changed, download or copy it again"

# What a tokenizer.json must hold to mean the same as ranks; the first of each is Llama 3's.
_LLAMA3_JSON: dict[str, tuple[Any, ...] | type] = {
    "model.type": ("BPE",),
    "normalizer": (None,),
    "model.byte_fallback": (False, None),
    "model.unk_token": (None,),
    "model.dropout": (None, 0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.ignore_merges": (True, False, None),
    "model.vocab": dict,
    "model.merges": list,
    "added_tokens": list,
    "pre_tokenizer.type": ("Sequence",),
    "pre_tokenizer.pretokenizers.0.type": ("Split",),
    "pre_tokenizer.pretokenizers.0.pattern.Regex": str,
    "pre_tokenizer.pretokenizers.0.behavior": ("Isolated",),
    "pre_tokenizer.pretokenizers.0.invert": (False,),
    "pre_tokenizer.pretokenizers.1.type": ("ByteLevel",),
    "pre_tokenizer.pretokenizers.1.add_prefix_space": (False,),
    "pre_tokenizer.pretokenizers.1.use_regex": (False,),
    "pre_tokenizer.pretokenizers.2": (None,),
}
# GPT-2's table of a character for each byte: a printable byte is its own Latin-1 character, the
# n-th other one U+0100 + n.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHARACTER = {byte: chr(byte) for byte in _PRINTABLE}
_CHARACTER |= {byte: chr(0x100 + n) for n, byte in enumerate(_OTHERS)}
_BYTE = {character: byte for byte, character in _CHARACTER.items()}


def token_bytes(characters: str) -> bytes:
    """The bytes of a token in the vocabulary. Raises KeyError for another character."""
    return bytes(_BYTE[character] for character in characters)


def token_characters(token: bytes) -> str:
    """The characters that stand for a token's bytes in the vocabulary."""
    return "".join(_CHARACTER[byte] for byte in token)


def parse_tokenizer_json(path: str, data: bytes) -> tuple[dict[bytes, int], dict[str, int], str]:
    """The ranks, special tokens and pattern of a tokenizer.json that is like Llama 3's.

    What else is in it is not used: `post_processor` puts `<|begin_of_text|>` in front, as `encode`
    does when asked to; `truncation` and `padding` are about batches, and bytes need no `decoder`.
    """
    try:
        config = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path} is no complete JSON ({error}); {FETCH_AGAIN}") from None
    if "model" not in config:
        keys = ", ".join(config) or "no keys at all"
        raise InputError(
            f"{path} is JSON, but no tokenizer.json, which has the key 'model' (here: {keys:.60}); "
            "use the tokenizer.json or the tokenizer.model"
        )
    for key, allowed in _LLAMA3_JSON.items():
        value = _at(config, key)
        if isinstance(allowed, type):
            if not isinstance(value, allowed):
                raise _unlike_llama3(path, f"{key} is {value!r:.60}, not a {allowed.__name__}")
        elif value not in allowed:
            raise _unlike_llama3(path, f"{key} is {value!r:.60}, not {allowed[0]!r}")
    vocab, special = config["model"]["vocab"], _parse_added_tokens(path, config)
    for name, token_id in special.items():
        # Training lists special tokens in the vocabulary too, where plain text might reach them.
        if vocab.pop(name, token_id) != token_id:
            what = f"{name} has id {token_id} in added_tokens, but another in model.vocab"
            raise InputError(f"{path}: {what}; {FETCH_AGAIN}")
    ids = [*vocab.values(), *special.values()]
    if missing := set(range(len(ids))).difference(i for i in ids if type(i) is int):
        raise InputError(
            f"{path}: the {len(ids)} tokens of model.vocab and added_tokens should have the ids 0 "
            f"to {len(ids) - 1}, each once, but none has {min(missing)}; {FETCH_AGAIN}"
        )
    _check_merges(path, config["model"], vocab)
    try:
        ranks = {token_bytes(token): rank for token, rank in vocab.items()}
    except KeyError as error:
        what = f"model.vocab has {error}, which is no byte's character"
        raise _unlike_llama3(path, what) from None
    return ranks, special, _at(config, "pre_tokenizer.pretokenizers.0.pattern.Regex")


def _parse_added_tokens(path: str, config: dict[str, Any]) -> dict[str, int]:
    """Name to id of the special tokens. Any other kind would come out of plain text."""
    special = {}
    for token in config["added_tokens"]:
        name, token_id = _at(token, "content"), _at(token, "id")
        is_plain = not any(_at(token, flag) for flag in ("lstrip", "rstrip", "single_word"))
        if not (isinstance(name, str) and _at(token, "special") is True and is_plain):
            what = f"added_tokens has {token!r:.180}, not a plain special token"
            raise _unlike_llama3(path, what)
        special[name] = token_id
    for name in ("<|begin_of_text|>", "<|end_of_text|>"):
        if name not in special:
            raise _unlike_llama3(path, f"added_tokens has no {name}")
    return special


def _at(config: Any, keys: str) -> Any:
    """The value at `keys`, joined by dots; None where there is none."""
    for key in keys.split("."):
        if isinstance(config, list):
            config = {str(index): value for index, value in enumerate(config)}
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _unlike_llama3(path: str, what: str) -> InputError:
    return InputError(f"{path} is unlike Llama 3's: {what}; use the tokenizer.model instead")


def _check_merges(path: str, model: dict[str, Any], vocab: dict[str, int]) -> None:
    """Refuses a list of merges that encodes otherwise than ranks do.

    Hugging Face joins the neighbours that come first in the list. tiktoken knows no list: it joins
    those that make the token of the lowest id, and a word that is a token stays whole. That is the
    same if the list makes tokens in the order of their ids and has for each of them
    - all pairs that make it, as a list derived from ranks does; or
    - the pair that tiktoken ends with when it merges the token's own bytes, as a trained list does.
      With the token's bytes it does the same in any text, so it never meets another pair.
    Some hundred of Llama 3's tokens have no pair at all: only `ignore_merges` leads to them, and
    an early tokenizer.json lacked it by mistake. So it may be missing beside a list that is clearly
    derived from ranks: all pairs are there, and more than one for some token, which training never
    produces.
    """
    listed: set[tuple[str, str]] = set()
    last_id = -1
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and _are_tokens(pair, vocab)):
            what = f"model.merges has {merge!r:.60}, not two tokens that make a third"
            raise InputError(f"{path}: {what}; {FETCH_AGAIN}")
        made_id = vocab["".join(pair)]
        if made_id < last_id:
            what = f"model.merges has {merge!r:.60} for id {made_id} after one for id {last_id}"
            raise _unlike_llama3(path, what)
        listed.add((pair[0], pair[1]))
        last_id = made_id

    doubtful = [token for token in vocab if not listed.issuperset(_pairs(token, vocab))]
    is_derived = not doubtful and len(listed) > len({left + right for left, right in listed})
    if not is_derived and not model.get("ignore_merges"):
        doubtful = [token for token in vocab if len(token) > 1]
    for token in doubtful:
        if _last_pair(token, vocab) not in listed:
            what = f"model.merges does not make {token!r:.60} (id {vocab[token]}) as its rank would"
            raise _unlike_llama3(path, what)


def _are_tokens(pair: list[Any], vocab: dict[str, int]) -> bool:
    return all(isinstance(t, str) and t in vocab for t in pair) and "".join(pair) in vocab


def _pairs(token: str, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of tokens that make `token`, by their ids, which is the order in Llama 3's file."""
    cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
    pairs = [(left, right) for left, right in cuts if left in vocab and right in vocab]
    return sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))


def _last_pair(token: str, vocab: dict[str, int]) -> tuple[str, ...]:
    """What tiktoken has merged the bytes of `token` to just before they are `token`."""
    merged = list(token)
    while len(merged) > 2:
        ranks = [vocab.get(left + right, math.inf) for left, right in itertools.pairwise(merged)]
        if min(ranks) == math.inf:
            break
        first = ranks.index(min(ranks))
        merged[first : first + 2] = [merged[first] + merged[first + 1]]
    return tuple(merged)


def write_tokenizer_json(
    path: Path, ranks: dict[bytes, int], special_tokens: dict[str, int], pattern: str
) -> None:
    """Writes the file for Hugging Face's libraries, which then give the same ids for any text.

    As in Llama 3's own, `<|begin_of_text|>` is put in front and a text may spell special tokens.
    Raises InputError for a special token with the spelling of an ordinary one.
    """
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    vocab = {token_characters(token): rank for token, rank in by_rank}
    special = sorted(special_tokens.items(), key=lambda item: item[1])
    merges = [f"{left} {right}" for token in vocab for left, right in _pairs(token, vocab)]
    if twice := [name for name, _ in special if name in vocab]:
        raise InputError(f"{path}: {twice[0]} is a special token and an ordinary one; rename it")
    # Added tokens that are not in the vocabulary can only have the ids after it.
    vocab |= {name: token_id for name, token_id in special if token_id < by_rank[-1][1]}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bos = "<|begin_of_text|>"
    text, other = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    first, second = ({"SpecialToken": {"id": bos, "type_id": n}} for n in range(2))
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    config = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": t, **plain, "special": True} for t, i in special],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {**split, "pattern": {"Regex": pattern}},
                {**byte_level, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, second, other],
            "special_tokens": {bos: {"id": bos, "ids": [special_tokens[bos]], "tokens": [bos]}},
        },
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": merges},
    }
    path.write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
