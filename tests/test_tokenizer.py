import base64
import copy
import itertools
import json
import pickle
import random
import re
from pathlib import Path
from typing import get_args

import pytest
import sentencepiece
import tiktoken
from fixtures import MERGES, write_sentencepiece, write_tiktoken

from llama.args import ModelArgs
from llama.chat_template import chat_template
from llama.dialog import default_tool_format
from llama.tokenization import vocabulary
from llama.tokenization.tokenizer_json import write_tokenizer_json
from llama.tokenization.vocabulary import _split_long
from llama.tokenizer import ChatFormat, Llama2ChatFormat, Role, Tokenizer

N_RANKS = 256 + len(MERGES)
# Written out again, not imported: the test has to notice if the module's copy changes.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "",
    " ",
    "hello world",
    "  hello  world  ",
    "Don't we'LL they'Re it'Strong 1234567 ½ Ⅷ",
    "tabs\t\tand\r\n\r\n  newlines \n end   ",
    "naïve café, 東京タワー, Здравствуй, שלום, e\u0301, \u200b\u2028\u2581_",
    "🎉👩‍👩‍👧‍👦🇩🇪 <|eot_id|> <s></s><unk> <0x41> [INST]",
]


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    # Neither name says which of the two it is: the content has to.
    return Tokenizer(write_tiktoken(tmp_path_factory.mktemp("llama3") / "tokenizer.model"))


@pytest.fixture(scope="module")
def llama2(tmp_path_factory):
    return Tokenizer(write_sentencepiece(tmp_path_factory.mktemp("llama2") / "tokenizer.model"))


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.fixture(params=["llama2", "llama3"])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def plain_tiktoken():
    tokens = [bytes([byte]) for byte in range(256)] + list(MERGES)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding("test", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="module")
def processor(llama2):
    return sentencepiece.SentencePieceProcessor(model_file=llama2.model_path)


USER = {"role": "user", "content": "x"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds <two> & 'more' é",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
WEATHER = {"type": "function", "function": {"name": "get_weather"}}
ADD_CALL = {
    "type": "function",
    "function": {"name": "add", "arguments": {"a": 1, "b": [True, None, "é\n"]}},
}
SEARCH_CALL = {
    "type": "function",
    "function": {"name": "brave_search", "arguments": {"query": '"gold"'}},
}

# Vocabulary


def test_llama3_ids_and_names(llama3):
    assert not llama3.is_sentencepiece
    assert llama3.n_words == N_RANKS + 256
    assert sorted(llama3.special_tokens.values()) == list(range(N_RANKS, N_RANKS + 256))
    offsets = {
        0: "begin_of_text",
        1: "end_of_text",
        2: "reserved_special_token_0",
        3: "reserved_special_token_1",
        4: "finetune_right_pad_id",
        5: "reserved_special_token_2",
        6: "start_header_id",
        7: "end_header_id",
        8: "eom_id",
        9: "eot_id",
        10: "python_tag",
        11: "reserved_special_token_3",
        12: "reserved_special_token_4",
        255: "reserved_special_token_247",
    }
    for offset, name in offsets.items():
        assert llama3.special_tokens[f"<|{name}|>"] == N_RANKS + offset
    assert (llama3.bos_id, llama3.eos_id, llama3.pad_id) == (N_RANKS, N_RANKS + 1, N_RANKS + 4)
    assert llama3.stop_tokens == {N_RANKS + 1, N_RANKS + 8, N_RANKS + 9}


def test_any_number_of_ranks(tmp_path):
    tokenizer = Tokenizer(str(write_tiktoken(tmp_path / "ranks", merges=[b"ab"])))
    assert tokenizer.n_words == 257 + 256
    assert tokenizer.encode("abc", bos=True) == [257, 256, ord("c")]


def test_llama2_ids_and_names(llama2, processor):
    assert llama2.is_sentencepiece
    assert llama2.n_words == processor.vocab_size()
    assert processor.pad_id() == -1  # as in Llama 2's file; must not come out as pad_id
    assert (llama2.bos_id, llama2.eos_id, llama2.pad_id) == (1, 2, 0)
    assert llama2.stop_tokens == {2}
    assert llama2.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_copies_and_pickles_need_no_file(tmp_path, either, duplicate):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(Path(either.model_path).read_bytes())
    tokenizer = Tokenizer(path)
    tokenizer.stop_tokens = {7, *tokenizer.stop_tokens}
    path.unlink()
    chat = duplicate(ChatFormat(tokenizer))
    assert type(chat) is type(ChatFormat(either))
    assert chat.encode_dialog_prompt([USER]) == ChatFormat(either).encode_dialog_prompt([USER])
    for duplicated in (chat.tokenizer, duplicate(tokenizer)):
        assert duplicated.stop_tokens == tokenizer.stop_tokens
        assert duplicated.special_tokens == either.special_tokens
        for text in TEXTS:
            assert duplicated.decode(duplicated.encode(text)) == either.decode(either.encode(text))


# Encoding


@pytest.mark.parametrize("text", TEXTS)
def test_llama3_encodes_as_tiktoken_does(llama3, plain_tiktoken, text):
    ids = plain_tiktoken.encode_ordinary(text)
    assert llama3.encode(text) == ids
    assert llama3.encode(text, True, True) == [llama3.bos_id, *ids, llama3.eos_id]
    assert llama3.decode(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_llama2_encodes_as_sentencepiece_does(llama2, processor, text):
    ids = processor.encode(text)
    assert llama2.encode(text) == ids
    assert llama2.encode(text, True, True) == [1, *ids, 2]
    assert llama2.decode(ids) == processor.decode(ids)
    assert llama2.decode(ids) == text.replace("\u2581", " ")  # SentencePiece's sign for a space


def test_special_names_in_text_stay_text(either):
    text = " ".join(either.special_tokens)
    ids = either.encode(text)
    assert not set(ids) & set(either.special_tokens.values())
    assert either.decode(ids) == text


def test_allowed_special(llama3):
    eot, python_tag = (llama3.special_tokens[name] for name in ("<|eot_id|>", "<|python_tag|>"))
    text = "a<|eot_id|><|python_tag|>"
    assert llama3.encode(text, allowed_special="all") == [ord("a"), eot, python_tag]
    ids = llama3.encode(text, allowed_special={"<|eot_id|>"})
    assert ids == [ord("a"), eot, *llama3.encode("<|python_tag|>")]
    with pytest.raises(ValueError, match=r"no special token '<.nonsense.>'"):
        llama3.encode(text, allowed_special={"<|nonsense|>"})
    with pytest.raises(ValueError, match="no special token"):
        llama3.encode(text, allowed_special="<|eot_id|>")  # a str is a set of characters


def test_sentencepiece_allows_no_special(llama2):
    for allowed in ("all", {"<s>"}):
        with pytest.raises(ValueError, match="SentencePiece has no text for special tokens"):
            llama2.encode("<s>", allowed_special=allowed)


def test_disallowed_special(either):
    name = "</s>" if either.is_sentencepiece else "<|eot_id|>"
    for disallowed in ("all", {name}, (name,)):
        assert either.encode("fine", disallowed_special=disallowed) == either.encode("fine")
        with pytest.raises(ValueError, match=r"has .* at character 3"):
            either.encode(f"abc{name}", disallowed_special=disallowed)


def test_disallowed_all_spares_what_is_allowed(llama3):
    ids = llama3.encode("<|eot_id|>", allowed_special={"<|eot_id|>"}, disallowed_special="all")
    assert ids == [llama3.special_tokens["<|eot_id|>"]]


def test_disallowed_name_is_found_across_a_cut(llama3):
    text = "a" * (vocabulary._MAX_RUN_CHARS - 3) + "<|eot_id|>"
    with pytest.raises(ValueError, match="at character 24997"):
        llama3.encode(text, disallowed_special="all")


@pytest.mark.parametrize("value", [b"bytes", None, 3, ["a"]])
def test_encode_takes_only_str(either, value):
    with pytest.raises(TypeError, match=f"not {type(value).__name__}"):
        either.encode(value)


def test_surrogates(either):
    assert either.decode(either.encode("a\ud83d")) == "a\ufffd"
    assert either.decode(either.encode("a\ud83c\udf89b")) == "a🎉b"


# Long texts


def naive_split(text, max_block, max_run):
    parts = []
    for block_start in range(0, len(text), max_block):
        part, run = "", 0
        for before, char in itertools.pairwise(
            [None, *text[block_start : block_start + max_block]]
        ):
            run = run + 1 if before is not None and before.isspace() == char.isspace() else 1
            if run > max_run:
                parts.append(part)
                part, run = "", 1
            part += char
        parts.append(part)
    return parts


def test_split_equals_a_count_of_every_character(monkeypatch):
    monkeypatch.setattr(vocabulary, "_MAX_BLOCK_CHARS", 50)
    monkeypatch.setattr(vocabulary, "_MAX_RUN_CHARS", 5)
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(
            rng.choice("ab \t\u3000é") * rng.randrange(1, 14) for _ in range(rng.randrange(16))
        )
        assert list(_split_long(text)) == naive_split(text, 50, 5)


def test_split_at_the_limits():
    def lengths(text):
        parts = list(_split_long(text))
        assert "".join(parts) == text
        return [len(part) for part in parts]

    assert lengths("word " * 80_000) == [400_000]
    assert lengths("word " * 80_000 + "x") == [400_000, 1]
    assert lengths("a" * 25_000) == [25_000]
    assert lengths("a" * 25_001) == [25_000, 1]
    assert lengths("word " + " " * 60_000 + "x") == [4 + 25_000, 25_000, 10_002]


@pytest.mark.parametrize("char", [" ", "\t", "\n", "a", "é", "🎉"])
def test_a_million_of_one_character(either, processor, plain_tiktoken, char):
    text = char * 1_000_000
    ids = either.encode(text)
    assert either.decode(ids) == text
    if either.is_sentencepiece:
        assert ids == processor.encode(text)
    else:  # cuts every 25,000 characters, 400,000 being a multiple
        assert ids == plain_tiktoken.encode_ordinary(char * 25_000) * 40


def test_a_text_in_blocks_has_the_ids_of_the_whole(llama3, llama2, monkeypatch):
    monkeypatch.setattr(vocabulary, "_MAX_BLOCK_CHARS", 7)
    text, size = "hello world 12345 hello", llama3.block_chars
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    assert size == 7
    assert [i for block in blocks for i in llama3.encode(block)] == llama3.encode(text)
    assert llama2.block_chars is None


def test_long_runs_are_cut_where_the_limits_say(llama3, plain_tiktoken):
    text = "1" + "hello" * 16_000 + " " * 70_003 + "the end " * 40_000
    expected = []
    for part in naive_split(text, 400_000, 25_000):
        expected += plain_tiktoken.encode_ordinary(part)
    assert llama3.encode(text) == expected


# Decoding


def test_decode_writes_llama3_special_tokens_by_name(llama3):
    ids = [llama3.bos_id, *llama3.encode("hello"), llama3.special_tokens["<|eot_id|>"]]
    assert llama3.decode(ids) == "<|begin_of_text|>hello<|eot_id|>"


def test_decode_leaves_out_llama2_control_pieces(llama2):
    assert llama2.decode(llama2.encode("hello", bos=True, eos=True)) == "hello"


def test_decode_takes_any_integers(either):
    import torch

    ids = either.encode("hello")
    assert either.decode(iter(ids)) == either.decode(torch.tensor(ids)) == "hello"
    with pytest.raises(TypeError):
        either.decode([1.0])


def test_ids_out_of_range(either):
    either.decode([either.n_words - 1])
    for bad in (-1, either.n_words, 2**40):
        message = f"token id {bad} is not within 0..{either.n_words - 1}"
        with pytest.raises(ValueError, match=message):
            either.decode([0, bad])
        with pytest.raises(ValueError, match=message):
            either.stream_decoder().feed(bad)


def test_stream_of_a_split_emoji(either):
    text = "a 🎉é 🎉"
    decoder = either.stream_decoder()
    fed = [decoder.feed(token_id) for token_id in either.encode(text)]
    assert "".join(fed) == text  # all of it before flush
    assert "🎉" in fed
    assert "" in fed  # the emoji's first bytes
    assert decoder.flush() == ""


def test_stream_keeps_all_but_the_first_space(llama2):
    decoder = llama2.stream_decoder()
    fed = [decoder.feed(token_id) for token_id in llama2.encode("the dog  dog", bos=True)]
    assert fed == ["", "the", " dog", " ", " dog"]


def test_flush_returns_the_incomplete_rest_and_resets(either):
    ids = either.encode("the 🎉")[:-1]
    decoder = either.stream_decoder()
    for _ in range(2):
        fed = "".join(decoder.feed(token_id) for token_id in ids)
        assert fed == "the "
        assert fed + decoder.flush() == either.decode(ids)


@pytest.mark.parametrize(
    "settings", [{"add_dummy_prefix": False}, {"remove_extra_whitespaces": True}]
)
def test_stream_follows_other_sentencepiece_settings(tmp_path, settings):
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model", **settings))
    pieces = tokenizer.encode("the dog é")  # with a space on its own before é
    for ids in itertools.product([*pieces, 0, 1], repeat=4):
        decoder = tokenizer.stream_decoder()
        fed = [decoder.feed(token_id) for token_id in ids]
        assert "".join(fed) + decoder.flush() == tokenizer.decode(ids), ids


def test_stream_equals_decode_for_any_ids(either):
    rng = random.Random(0)
    first_byte = 3 if either.is_sentencepiece else 0
    ordinary = either.encode("the dog é 🎉 東京   \u2581 said")
    special = list(either.special_tokens.values())
    pools = [
        range(either.n_words),
        ordinary + special,
        [
            first_byte + byte
            for byte in (0x41, 0x80, 0xBF, 0xC3, 0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0xFF)
        ],
        [*ordinary, *(first_byte + byte for byte in "🎉é".encode()), *special],
    ]
    for trial in range(6000):
        ids = rng.choices(pools[trial % len(pools)], k=rng.randrange(12))
        decoder = either.stream_decoder()
        fed = [decoder.feed(token_id) for token_id in ids]
        assert "".join(fed) + decoder.flush() == either.decode(ids), ids


# Llama 3's chat format

DIALOG = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "hello world <|eot_id|>"},
    {"role": "assistant", "content": "12 é"},
    {"role": "user", "content": "again"},
]


def test_llama3_dialog_id_by_id(llama3, plain_tiktoken):
    plain, base = plain_tiktoken.encode_ordinary, N_RANKS
    begin, start, end, eot = base, base + 6, base + 7, base + 9
    blank_line = [256 + MERGES.index(b"\n\n")]
    expected = [begin]
    expected += [start, *plain("system"), end, *blank_line, *plain("Be brief."), eot]
    expected += [start, 256 + MERGES.index(b"user"), end, *blank_line]
    expected += [*plain("hello world <|eot_id|>"), eot]
    expected += [start, 256 + MERGES.index(b"assistant"), end, *blank_line, *plain("12 é"), eot]
    expected += [start, *plain("user"), end, *blank_line, *plain("again"), eot]
    expected += [start, *plain("assistant"), end, *blank_line]
    chat = ChatFormat(llama3)
    assert type(chat) is ChatFormat
    assert chat.encode_dialog_prompt(DIALOG) == expected
    assert expected.count(eot) == 4  # the user's own `<|eot_id|>` stayed text


def test_llama3_header_and_message(llama3, plain_tiktoken):
    plain = plain_tiktoken.encode_ordinary
    chat = ChatFormat(llama3)
    for role, written in [("ipython", "ipython"), ("tool", "ipython"), ("user", "user")]:
        message = {"role": role, "content": " 3\n\n"}
        header = [N_RANKS + 6, *plain(written), N_RANKS + 7, *plain("\n\n")]
        assert chat.encode_header(message) == header
        assert chat.encode_message(message) == [*header, *plain("3"), N_RANKS + 9]


def test_llama3_dialog_may_end_with_the_assistant(llama3):
    chat = ChatFormat(llama3)
    expected = [llama3.bos_id, *chat.encode_message(DIALOG[2])]
    expected += chat.encode_header({"role": "assistant", "content": ""})
    assert chat.encode_dialog_prompt(DIALOG[2:3]) == expected


@pytest.fixture(scope="module")
def transformers_tokenizer(llama3, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("transformers") / "tokenizer.json"
    vocabulary = llama3.vocabulary
    write_tokenizer_json(path, vocabulary.ranks, vocabulary.special_tokens, vocabulary.pattern)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token="<|begin_of_text|>"
    )


def assert_same_template(theirs, ours, dialog, tools=None, builtin_tools=(), **settings):
    """Whether transformers, which makes ids of a text, and ChatFormat agree."""
    names = {"builtin_tools": list(builtin_tools)} if builtin_tools else {}
    names |= {"date_string": settings["date"]} if settings else {}
    settings |= {"builtin_tools": builtin_tools}
    ids = theirs.apply_chat_template(
        dialog, tools=tools, add_generation_prompt=True, return_dict=False, **names
    )
    assert ids == ours.encode_dialog_prompt(dialog, tools, **settings)
    ids = theirs.apply_chat_template(dialog, tools=tools, return_dict=False, **names)
    turns = ours.encode_turns(dialog, tools, **settings)
    assert ids == [i for turn in turns for i in turn.prompt + turn.completion]


@pytest.mark.parametrize("role", get_args(Role))
def test_llama3_chat_template_is_the_chat_format(llama3, transformers_tokenizer, role):
    theirs = transformers_tokenizer
    theirs.chat_template = chat_template()
    for dialog in (
        [{"role": role, "content": " \n{'a': 3} é\t\n"}],
        [USER, {"role": role, "content": "ok"}, {"role": "assistant", "content": ""}, USER],
    ):
        assert_same_template(theirs, ChatFormat(llama3), dialog)


@pytest.mark.parametrize("tool_format", ["json", "pythonic"])
@pytest.mark.parametrize("builtin", [(), ("brave_search",), ("brave_search", "wolfram_alpha")])
def test_llama3_chat_template_with_tools(llama3, transformers_tokenizer, tool_format, builtin):
    theirs = transformers_tokenizer
    theirs.chat_template = chat_template(tool_format)
    ours = ChatFormat(llama3, tool_format)
    system = {"role": "system", "content": " Be brief. "}
    answer = {"role": "assistant", "content": " 2. "}
    one = {"role": "assistant", "content": None, "tool_calls": [ADD_CALL]}
    two = {"role": "assistant", "content": "Well. ", "tool_calls": [ADD_CALL, SEARCH_CALL]}
    only = {"role": "assistant", "tool_calls": [SEARCH_CALL]}
    results = [
        {"role": "tool", "content": " 2 ", "tool_call_id": "a"},
        {"role": "ipython", "content": {"a": [1, None, "é"]}, "tool_call_id": "b", "name": "add"},
    ]
    error = {"role": "tool", "content": "no such <town>", "is_error": True}
    for dialog in (
        [USER],
        [system, USER, answer, USER],
        [system, USER, one, results[0], answer, USER],
        [USER, two, *results],
        [USER, only, error, answer],
        [USER, only, {"role": "tool", "content": 0}],
        [answer, USER, system],
    ):
        for tools in (None, [ADD], [ADD, WEATHER]):
            assert_same_template(theirs, ours, dialog, tools, builtin)
            assert_same_template(theirs, ours, dialog, tools, builtin, date="1 Jan 2030")


def test_llama3_functions_in_json_form(llama3):
    """As the templates that are released with Llama 3.1 to 3.3 write them."""
    dialog = [{"role": "system", "content": "Be brief.\n"}, USER]
    text = llama3.decode(ChatFormat(llama3).encode_dialog_prompt(dialog, [WEATHER]))
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Environment: ipython\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Given the following functions, please respond with a JSON for a function call with its "
        "proper arguments that best answers the given prompt.\n\nRespond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}.'
        'Do not use variables.\n\n{\n    "type": "function",\n    "function": {\n'
        '        "name": "get_weather"\n    }\n}\n\nx<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_llama3_functions_in_pythonic_form(llama3):
    """As Meta's prompt format of Llama 3.2 has them."""
    call = {"role": "assistant", "content": "", "tool_calls": [ADD_CALL, SEARCH_CALL]}
    chat = ChatFormat(llama3, "pythonic")
    text = llama3.decode(chat.encode_dialog_prompt([USER, call], [WEATHER]))
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are an expert in composing functions. You are given a question"
    )
    assert text.endswith(
        "Here is a list of functions in JSON format that you can invoke.\n\n[\n    {\n"
        '        "name": "get_weather"\n    }\n]<|eot_id|>'
        "<|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        "[add(a=1, b=[True, None, 'é\\n']), brave_search(query='\"gold\"')]<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_each_released_model_has_the_form_that_it_was_trained_with():
    folders = sorted((Path(__file__).parents[1] / "params").glob("*"))
    known = {f.name: json.loads((f / "params.json").read_text()) for f in folders if f.is_dir()}
    pythonic = {n for n, a in known.items() if default_tool_format(ModelArgs(**a)) == "pythonic"}
    assert pythonic == {name for name in known if "3.2" in name} != set()


def test_llama3_built_in_tools(llama3):
    call = {"role": "assistant", "content": "", "tool_calls": [SEARCH_CALL]}
    dialog = [USER, call, {"role": "tool", "content": "2000"}]
    prompt = ChatFormat(llama3).encode_dialog_prompt(dialog, builtin_tools=["brave_search"])
    text = llama3.decode(prompt)
    assert "Environment: ipython\nTools: brave_search\n\nCutting Knowledge Date" in text
    assert '<|python_tag|>brave_search.call(query="\\"gold\\"")<|eom_id|>' in text
    assert prompt.count(llama3.special_tokens["<|python_tag|>"]) == 1
    with pytest.raises(ValueError, match="no built-in tool 'google'"):
        ChatFormat(llama3).encode_dialog_prompt(dialog, builtin_tools=["google"])


def test_a_dialog_without_tools_has_no_date(llama3):
    chat = ChatFormat(llama3)
    plain = chat.encode_dialog_prompt(DIALOG)
    assert chat.encode_dialog_prompt(DIALOG, [], date="1 Jan 2030") == plain
    assert chat.encode_dialog_prompt(DIALOG, None, builtin_tools=[]) == plain


def test_text_of_tools_never_becomes_a_special_token(llama3):
    special = "<|eot_id|><|python_tag|><|eom_id|>"
    tool = {"type": "function", "function": {"name": "f", "description": special}}
    call = {"type": "function", "function": {"name": "f", "arguments": {special: special}}}
    dialog = [
        {"role": "user", "content": special},
        {"role": "assistant", "content": special, "tool_calls": [call]},
        {"role": "tool", "content": {special: special}},
        {"role": "tool", "content": special, "is_error": True},
    ]
    harmless = json.loads(json.dumps([dialog, tool]).replace("<|", "(("))
    for tool_format in ("json", "pythonic"):
        chat = ChatFormat(llama3, tool_format)
        forged = chat.encode_dialog_prompt(dialog, [tool], date=special)
        plain = chat.encode_dialog_prompt(harmless[0], [harmless[1]])
        special_ids = set(llama3.special_tokens.values())
        assert [i for i in forged if i in special_ids] == [i for i in plain if i in special_ids]


def test_results_stand_in_the_order_of_their_calls(llama3):
    second = {**SEARCH_CALL, "id": "b"}
    calls = {"role": "assistant", "content": "", "tool_calls": [{**ADD_CALL, "id": "a"}, second]}
    results = [{"role": "tool", "content": id, "tool_call_id": id} for id in ("a", "b")]
    encode = ChatFormat(llama3).encode_dialog_prompt
    expected = encode([USER, calls, *results, USER])
    assert encode([USER, calls, *reversed(results), USER]) == expected
    assert encode([USER, calls, results[0], {"role": "tool", "content": "b"}, USER]) == expected
    wrong = {"role": "tool", "content": "c", "tool_call_id": "c"}
    with pytest.raises(ValueError, match=r"message 2 answers the call 'c', .* it made a, b"):
        encode([USER, calls, wrong])


def test_arguments_in_json_stay_as_they_were_written(llama3):
    written = '{"a":1,\n "b": [] }'
    call = {"type": "function", "function": {"name": "add", "arguments": written}}
    ids = ChatFormat(llama3).encode_message({"role": "assistant", "tool_calls": [call]})
    assert f'{{"name": "add", "parameters": {written}}}' in llama3.decode(ids)


def test_continuing_the_final_message(either):
    chat = ChatFormat(either)
    question = [{"role": "user", "content": "hello"}]
    start = {"role": "assistant", "content": "The dog "}
    ids = chat.encode_dialog_prompt([*question, start], continue_final_message=True)
    if either.is_sentencepiece:
        assert ids == either.encode("[INST] hello [/INST] The dog ", bos=True)
    else:
        assert ids == chat.encode_dialog_prompt(question) + either.encode("The dog ")
    for dialog, message in (
        (question, "message 0 is the last and can't be continued"),
        ([*question, {"role": "assistant", "content": ""}], "message 1 is .* can't be continued"),
        ([start], "no message before the answer"),
    ):
        with pytest.raises(ValueError, match=message):
            chat.encode_dialog_prompt(dialog, continue_final_message=True)


def test_llama2_has_no_tools(llama2):
    chat = ChatFormat(llama2)
    for arguments in ({"tools": [ADD]}, {"builtin_tools": ["brave_search"]}):
        with pytest.raises(ValueError, match="Llama 2's chat format has no tools"):
            chat.encode_dialog_prompt([USER], **arguments)
        with pytest.raises(ValueError, match="Llama 2's chat format has no tools"):
            chat.encode_turns([USER], **arguments)
    call = {"role": "assistant", "content": "", "tool_calls": [ADD_CALL]}
    with pytest.raises(ValueError, match="message 1 has tool_calls"):
        chat.encode_dialog_prompt([USER, call, USER])


def test_llama3_turns_say_who_writes_what(llama3, plain_tiktoken):
    chat = ChatFormat(llama3)
    turns = chat.encode_turns(DIALOG)
    assert [turn.role for turn in turns] == [message["role"] for message in DIALOG]
    whole = [token_id for turn in turns for token_id in turn.prompt + turn.completion]
    header = chat.encode_header({"role": "assistant", "content": ""})
    assert whole + header == chat.encode_dialog_prompt(DIALOG)
    assert turns[0].prompt == [N_RANKS, *chat.encode_header(DIALOG[0])]
    assert turns[2].prompt == header
    assert turns[2].completion == [*plain_tiktoken.encode_ordinary("12 é"), N_RANKS + 9]
    assert turns[2].prompt == chat.encode_dialog_prompt(DIALOG[:2])[-len(header) :]


# Llama 2's chat format


LLAMA2_DIALOG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " hello </s> "},
    {"role": "assistant", "content": "\nThe dog. "},
    {"role": "user", "content": "Why?\n"},
]


def test_llama2_dialog(llama2, processor):
    chat = ChatFormat(llama2)
    assert isinstance(chat, Llama2ChatFormat)
    first = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n hello </s> [/INST] The dog. "
    expected = [1, *processor.encode(first), 2, 1, *processor.encode("[INST] Why? [/INST]")]
    assert chat.encode_dialog_prompt(LLAMA2_DIALOG) == expected
    assert expected.count(2) == 1  # the user's own `</s>` stayed text
    question = [{"role": "user", "content": "Why?"}]
    assert chat.encode_dialog_prompt(question) == [1, *processor.encode("[INST] Why? [/INST]")]


def test_llama2_turns_say_what_follows_a_prompt(llama2, processor):
    chat = ChatFormat(llama2)
    turns = chat.encode_turns(LLAMA2_DIALOG)
    assert [turn.role for turn in turns] == ["assistant", "user"]
    whole = [token_id for turn in turns for token_id in turn.prompt + turn.completion]
    assert whole == chat.encode_dialog_prompt(LLAMA2_DIALOG)
    assert turns[0].prompt == chat.encode_dialog_prompt(LLAMA2_DIALOG[:2])
    assert processor.decode(turns[0].completion) == "The dog. "
    assert turns[0].completion[-1] == llama2.eos_id
    assert turns[1] == ("user", [1, *processor.encode("[INST] Why? [/INST]")], [])
    assert chat.encode_turns(LLAMA2_DIALOG[:3]) == turns[:1]
    with pytest.raises(ValueError, match="message 0 is the last and has role 'system'"):
        chat.encode_turns(LLAMA2_DIALOG[:1])


def test_llama2_turns_of_a_tokenizer_with_a_token_across(tmp_path):
    settings = {"user_defined_symbols": ["]\u2581The"]}
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model", **settings))
    (turn,) = ChatFormat(tokenizer).encode_turns(LLAMA2_DIALOG[1:3])
    text = "[INST] hello </s> [/INST] The dog. "
    assert turn.prompt + turn.completion == tokenizer.encode(text, bos=True, eos=True)
    assert tokenizer.decode(turn.prompt) == "[INST] hello </s> [/INST"
    assert tokenizer.decode(turn.completion) == "] The dog. "


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ("s", "message 0 is the last and has role 'system'"),
        ("a", "message 0 has role 'assistant' where 'user' belongs"),
        ("us", "message 1 has role 'system' where 'assistant' belongs"),
        ("uu", "message 1 has role 'user' where 'assistant' belongs"),
        ("ssu", "message 1 has role 'system' where 'user' belongs"),
        ("sua", "message 2 is the last and has role 'assistant'"),
        ("suaa", "message 3 has role 'assistant' where 'user' belongs"),
        ("ut", "message 1 has role 'tool' where 'assistant' belongs"),
    ],
)
def test_llama2_order_of_roles(llama2, roles, message):
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    dialog = [{"role": names[role], "content": "x"} for role in roles]
    with pytest.raises(ValueError, match=message):
        ChatFormat(llama2).encode_dialog_prompt(dialog)


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_llama2_refuses_its_tags_in_text(llama2, tag, index):
    roles = ["system", "user", "assistant", "user"]
    dialog = [{"role": role, "content": "x"} for role in roles]
    dialog[index]["content"] = f"before {tag} after"
    with pytest.raises(ValueError, match=re.escape(f"message {index} contains {tag},")):
        ChatFormat(llama2).encode_dialog_prompt(dialog)


def test_llama2_has_no_single_messages(llama2):
    chat = ChatFormat(llama2)
    for method in (chat.encode_header, chat.encode_message):
        with pytest.raises(TypeError, match="encode_dialog_prompt"):
            method({"role": "user", "content": "x"})


# Wrong dialogs


@pytest.mark.parametrize(
    ("dialog", "error", "message"),
    [
        ([], ValueError, "dialog is empty"),
        (None, TypeError, "a dialog must be a list of messages, got None"),
        ([USER, "hello"], TypeError, "message 1 must be a dict .* got 'hello'"),
        (USER, TypeError, "message 0 must be a dict .* got 'role'"),
        ([USER, {"role": "user"}], ValueError, r"message 1 must have .* got \['role'\]"),
        ([{"content": "x"}], ValueError, r"message 0 must have .* got \['content'\]"),
        ([{**USER, "name": "x"}], ValueError, r"message 0 must have .* 'name'\]"),
        (
            [USER, {"role": "wizard", "content": "x"}],
            ValueError,
            "message 1 has the unknown role 'wizard'; roles are system, user, assistant, ipython",
        ),
        ([{"role": None, "content": "x"}], ValueError, "message 0 has the unknown role None"),
        ([{"role": "user", "content": None}], TypeError, "message 0: content .* got None"),
        ([{"role": "user", "content": ["x"]}], TypeError, "message 0: content .* got "),
    ],
)
def test_bad_dialogs(either, dialog, error, message):
    with pytest.raises(error, match=message):
        ChatFormat(either).encode_dialog_prompt(dialog)


CALLS = {"role": "assistant", "content": "", "tool_calls": [ADD_CALL]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tool_calls": "x"}, "message 1: tool_calls must be a list, got 'x'"),
        ({"tool_calls": ["x"]}, r"message 1: tool_calls\[0\] must be a dict .* got 'x'"),
        ({"tool_calls": [{"name": "add", "arguments": "{}"}]}, "must be a dict with id, type"),
        ({"tool_calls": [{**ADD_CALL, "type": "custom"}]}, "must be a dict with id, type"),
        ({"tool_calls": [{**ADD_CALL, "index": 0}]}, "unknown key 'index'"),
        ({"tool_calls": [{"function": {"name": "add"}}]}, "keys name and arguments, got .'name'."),
        ({"tool_calls": [{"function": {"name": "a b", "arguments": "{}"}}]}, "name is made of"),
        ({"tool_calls": [{"function": {"name": "add", "arguments": "{"}}]}, "or the JSON text"),
        ({"tool_calls": [{"function": {"name": "add", "arguments": "[]"}}]}, "or the JSON text"),
        ({"tool_calls": [{"function": {"name": "add", "arguments": None}}]}, "or the JSON text"),
        ({"tool_calls": []}, "message 1: content must be a str, got None"),
        ({"tool_call_id": "a"}, "message 1 must have the keys role and content"),
        ({"role": "user"}, "message 1 must have the keys role and content, got"),
        ({"role": "tool"}, "may have is_error, name, tool_call_id, got"),
    ],
)
def test_bad_tool_calls(llama3, changes, message):
    with pytest.raises(ValueError, match=message):
        ChatFormat(llama3).encode_dialog_prompt([USER, {**CALLS, "content": None, **changes}])


@pytest.mark.parametrize(
    ("tools", "error", "message"),
    [
        ("x", TypeError, "tools must be a list of functions, got 'x'"),
        (ADD, TypeError, "tools must be a list of functions"),
        (5, TypeError, "tools must be a list of functions, got 5"),
        (["x"], ValueError, r"tools\[0\] must be .* got 'x'"),
        ([ADD["function"]], ValueError, r"tools\[0\] must be"),
        ([{**ADD, "x": 1}], ValueError, r"tools\[0\] has the unknown key 'x'"),
        ([ADD, ADD], ValueError, r"tools\[1\]: there are two functions named 'add'"),
        ([{"type": "function", "function": {}}], ValueError, "name is made of .* got None"),
    ],
)
def test_bad_tools(llama3, tools, error, message):
    with pytest.raises(error, match=message):
        ChatFormat(llama3).encode_dialog_prompt([USER], tools)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("description", 1, "description must be a str, got 1"),
        ("parameters", [], r"parameters must be a dict, got \[\]"),
        ("strict", "yes", "strict must be a bool, got 'yes'"),
        ("parameters", {"a": {1}}, "can't be written as JSON"),
        ("title", "x", "unknown key 'title'"),
    ],
)
def test_bad_functions(llama3, key, value, message):
    tool = {"type": "function", "function": {**ADD["function"], key: value}}
    with pytest.raises(ValueError, match=message):
        ChatFormat(llama3).encode_dialog_prompt([USER], [tool])


def test_functions_need_a_user_and_a_known_format(llama3):
    with pytest.raises(ValueError, match="functions stand in the user's first message"):
        ChatFormat(llama3).encode_dialog_prompt([{"role": "system", "content": "x"}], [ADD])
    with pytest.raises(ValueError, match="tool_format is json or pythonic, not 'xml'"):
        ChatFormat(llama3, "xml")


def test_bad_single_message(llama3):
    with pytest.raises(ValueError, match="message has the unknown role 'wizard'"):
        ChatFormat(llama3).encode_message({"role": "wizard", "content": "x"})


# Files that are no tokenizer


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.model"):
        Tokenizer(str(tmp_path / "nowhere.model"))
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        Tokenizer(tmp_path)


def rank_lines(tmp_path):
    return write_tiktoken(tmp_path / "good").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"<!doctype html><html>Log in</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
        (b'{"error": "Access denied"}', "is the error message of a server"),
        (bytes(range(256)), "is neither tiktoken ranks nor .* nor a SentencePiece model"),
        (b"Once upon a time there was a token.\n", "is neither tiktoken ranks nor"),
        (b"\x12\x00", "is neither tiktoken ranks nor"),  # a protobuf without pieces
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer(path)
    assert str(path) in str(error.value)


def test_broken_ranks(tmp_path):
    lines = rank_lines(tmp_path)
    path = tmp_path / "tokenizer.model"
    cases = {
        "repeated or missing": [
            [*lines, lines[3]],
            [*lines, base64.b64encode(b"new") + b" 7\n"],
            lines[:20] + lines[21:],
            [*lines[:-1], lines[-1].split()[0] + b" -1\n"],
        ],
        "is not a token in base64 and its rank": [
            [*lines, b"aGVsbG8"],  # cut off in the middle of a line
            [*lines, b"!!!! 999\n"],
            [*lines, b"aGVsbG8= x\n"],
            [*lines, b"<html> 1\n"],
        ],
        "no token for the single byte 0xff": [
            [*lines[:255], base64.b64encode(b"new") + b" 255\n", *lines[256:]]
        ],
    }
    for message, contents in cases.items():
        for content in contents:
            path.write_bytes(b"".join(content))
            with pytest.raises(ValueError, match=message) as error:
                Tokenizer(path)
            assert str(path) in str(error.value)


def test_ranks_in_any_order_with_blank_lines(tmp_path, llama3):
    lines = rank_lines(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n" + b"\r\n".join(line.strip() for line in reversed(lines)) + b"\n\n")
    assert Tokenizer(path).encode("hello world") == llama3.encode("hello world")


def test_truncated_sentencepiece(tmp_path, llama2):
    whole = Path(llama2.model_path).read_bytes()
    path = tmp_path / "tokenizer.model"
    for size in range(2, len(whole), 97):  # a cut between two pieces would be a valid file
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is neither tiktoken ranks nor") as error:
            Tokenizer(path)
        assert str(path) in str(error.value)


def test_sentencepiece_without_bos(tmp_path):
    path = tmp_path / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world"] * 10),
        model_prefix=str(tmp_path / "t5"),
        model_type="bpe",
        vocab_size=20,
        hard_vocab_limit=False,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "t5.model").rename(path)
    with pytest.raises(ValueError, match="lacks <s>, </s> or <unk>"):
        Tokenizer(path)
