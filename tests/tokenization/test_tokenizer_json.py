"""Hugging Face's tokenizer.json beside the file of ranks that says the same."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest
from fixtures import MERGES, SENTENCES, write_tiktoken
from test_tokenizer import DIALOG, N_RANKS, PATTERN, TEXTS, USER

from llama.tokenization.tokenizer_json import write_tokenizer_json
from llama.tokenization.vocabulary import (
    LLAMA3_PATTERN,
    TiktokenVocabulary,
    _llama3_special_tokens,
    open_vocabulary,
    write_tiktoken_ranks,
)
from llama.tokenizer import ChatFormat, Tokenizer


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    return Tokenizer(write_tiktoken(tmp_path_factory.mktemp("llama3") / "tokenizer.model"))


def write(vocabulary, path):
    ranks, special_tokens = vocabulary.ranks, vocabulary.special_tokens
    write_tokenizer_json(path, ranks, special_tokens, vocabulary.pattern)


@pytest.fixture(scope="module")
def llama3_json(llama3, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "tokenizer.model"  # again the content has to say it
    write(open_vocabulary(llama3.model_path), path)
    return path


def write_json(path, config):
    path.write_text(json.dumps(config))
    return path


def varied_texts():
    rng = random.Random(0)
    characters = "  \n\t\r019'stTheé東🎉\u0301\u200b\u3000\x00\x7f½_<|>.!"
    random_texts = [
        "".join(rng.choices(characters, k=rng.randrange(1, 40)))
        + bytes(rng.randrange(256) for _ in range(20)).decode("latin-1")
        + rng.choice([*SENTENCES, "assistant the thes hello", "\r\n \n"])
        for _ in range(300)
    ]
    anything = "".join(chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000)
    named = "a<|eot_id|> b<|begin_of_text|><|reserved_special_token_3|><|eot_id"
    letters = " ".join("".join(rng.choices("abc", k=rng.randrange(1, 9))) for _ in range(300))
    return [*TEXTS, *SENTENCES, *random_texts, anything, letters, named]


def hugging_face(path):
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))


def assert_same_tokenizer(path, ours):
    """Hugging Face's reading of the file at `path` gives what `ours` gives."""
    theirs = hugging_face(path)
    assert theirs.get_vocab_size(with_added_tokens=True) == ours.n_words
    for name, token_id in ours.special_tokens.items():
        assert theirs.token_to_id(name) == token_id
    for text in varied_texts():
        as_special = ours.encode(text, bos=True, allowed_special="all")
        assert theirs.encode(text).ids == as_special, text
        assert theirs.decode(as_special, skip_special_tokens=False) == ours.decode(as_special)
        theirs.encode_special_tokens = True
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text), text
        theirs.encode_special_tokens = False


def test_json_is_the_same_tokenizer_as_the_ranks(llama3, llama3_json):
    tokenizer = Tokenizer(llama3_json)
    for name in ("n_words", "bos_id", "eos_id", "pad_id", "stop_tokens", "special_tokens"):
        assert getattr(tokenizer, name) == getattr(llama3, name)
    assert not tokenizer.is_sentencepiece
    for text in varied_texts():
        assert tokenizer.encode(text) == llama3.encode(text)
        ids = llama3.encode(text, allowed_special="all")
        assert tokenizer.encode(text, allowed_special="all") == ids
        assert tokenizer.decode(ids) == llama3.decode(ids)
    chat = ChatFormat(tokenizer)
    assert chat.encode_dialog_prompt(DIALOG) == ChatFormat(llama3).encode_dialog_prompt(DIALOG)


def test_json_is_the_same_tokenizer_for_hugging_face(llama3, llama3_json):
    assert_same_tokenizer(llama3_json, llama3)


def test_json_in_transformers(llama3, llama3_json, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_bytes(llama3_json.read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eot_id|>"}
    write_json(tmp_path / "tokenizer_config.json", config)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(llama3_json))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto.eos_token_id == llama3.special_tokens["<|eot_id|>"]
    auto.save_pretrained(tmp_path / "saved")
    saved = Tokenizer(tmp_path / "saved" / "tokenizer.json")
    for text in varied_texts()[:60]:
        ids = llama3.encode(text, bos=True, allowed_special="all")
        assert fast(text)["input_ids"] == auto(text)["input_ids"] == ids
        assert auto.decode(ids[1:], clean_up_tokenization_spaces=False) == text
        assert saved.encode(text, bos=True, allowed_special="all") == ids


def test_any_ranks_give_the_same_ids_in_hugging_face(tmp_path):
    """Also those that no training gives: in any order, some in reach only as a whole word."""
    rng = random.Random(0)
    for trial in range(60):
        letters = "ab" if trial % 2 else "abc"
        tokens = {"".join(rng.choices(letters, k=rng.randrange(2, 7))) for _ in range(12)}
        tokens = rng.sample(sorted(tokens), len(tokens))
        path = write_tiktoken(tmp_path / "ranks", merges=[token.encode() for token in tokens])
        ours = Tokenizer(path)
        write(open_vocabulary(str(path)), tmp_path / "tokenizer.json")
        again = Tokenizer(tmp_path / "tokenizer.json")
        theirs = hugging_face(tmp_path / "tokenizer.json")
        for _ in range(30):
            text = "".join(rng.choices(letters, k=rng.randrange(2, 24)))
            ids = ours.encode(text)
            assert theirs.encode(text, add_special_tokens=False).ids == ids, (tokens, text)
            assert again.encode(text) == ids


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trained, with its special tokens in front, and saved by Hugging Face's library."""
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    split = library.pre_tokenizers.Split(library.Regex(PATTERN), behavior="isolated")
    byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = library.decoders.ByteLevel()
    begin, end, eot = (f"<|{name}|>" for name in ("begin_of_text", "end_of_text", "eot_id"))
    trainer = library.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[begin, end],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SENTENCES, *TEXTS] * 3, trainer)
    tokenizer.add_special_tokens([eot])
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 0)]
    )
    path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_trained_json(trained, tmp_path):
    config = json.loads(trained.read_text())
    assert config["model"]["ignore_merges"] is False
    assert config["model"]["vocab"]["<|begin_of_text|>"] == 0
    ours = Tokenizer(trained)
    eot = ours.n_words - 1
    assert ours.special_tokens == {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|eot_id|>": eot}
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.stop_tokens) == (0, 1, 1, {1, eot})
    assert len(ours.encode("Once upon a time")) < 8  # it has merges
    assert_same_tokenizer(trained, ours)
    again = tmp_path / "tokenizer.json"
    write(open_vocabulary(str(trained)), again)
    assert_same_tokenizer(again, ours)
    with pytest.raises(ValueError, match=r"no <.start_header_id.>, which chat needs"):
        ChatFormat(ours).encode_dialog_prompt([USER])


def test_another_pattern_loses_no_text(trained, tmp_path):
    """What it does not match is a word of its own, between those that it matches."""
    config = json.loads(trained.read_text())
    split = config["pre_tokenizer"]["pretokenizers"][0]
    for pattern in (r"\p{L}+", r"the|\d", r"[a-m]+(?!\S)"):
        split["pattern"]["Regex"] = pattern
        path = write_json(tmp_path / "tokenizer.json", config)
        assert_same_tokenizer(path, Tokenizer(path))


def test_merges_in_either_form(llama3, llama3_json, tmp_path):
    config = json.loads(llama3_json.read_text())
    merges = config["model"]["merges"]
    assert " t h" not in merges
    assert "t h" in merges
    config["model"]["merges"] = [merge.split(" ") for merge in merges]
    tokenizer = Tokenizer(write_json(tmp_path / "tokenizer.json", config))
    assert [tokenizer.encode(text) for text in TEXTS] == [llama3.encode(text) for text in TEXTS]


@pytest.mark.parametrize("value", [None, False, True])
def test_a_list_derived_from_ranks_need_not_say_ignore_merges(llama3_json, tmp_path, value):
    config = json.loads(llama3_json.read_text())
    assert not [merge for merge in config["model"]["merges"] if merge.replace(" ", "") == "ist"]
    config["model"]["ignore_merges"] = value
    if value is None:
        del config["model"]["ignore_merges"]
    tokenizer = Tokenizer(write_json(tmp_path / "tokenizer.json", config))
    assert tokenizer.encode("ist") == [256 + MERGES.index(b"ist")]


def test_names_and_ids_of_llama_3_0(llama3_json, tmp_path):
    """In 3.0 the tokens that 3.1 named were still reserved."""
    config = json.loads(llama3_json.read_text())
    for number, name in enumerate(["finetune_right_pad_id", "eom_id", "python_tag"]):
        rename_token(config, f"<|{name}|>", f"<|reserved_special_token_{900 + number}|>")
    vocabulary = open_vocabulary(str(write_json(tmp_path / "tokenizer.json", config)))
    assert vocabulary.pad_id == vocabulary.eos_id == N_RANKS + 1
    assert vocabulary.stop_tokens == {N_RANKS + 1, N_RANKS + 9}
    write_tiktoken_ranks(vocabulary, tmp_path / "tokenizer.model")
    assert Tokenizer(tmp_path / "tokenizer.model").special_tokens["<|eot_id|>"] == N_RANKS + 9


def test_round_trip(llama3, llama3_json, tmp_path):
    ranks, back = tmp_path / "tokenizer.model", tmp_path / "tokenizer.json"
    write_tiktoken_ranks(open_vocabulary(str(llama3_json)), ranks)
    assert ranks.read_bytes() == Path(llama3.model_path).read_bytes()
    write(open_vocabulary(str(ranks)), back)
    assert back.read_bytes() == llama3_json.read_bytes()


def test_merges_of_a_token_are_in_the_order_of_their_pairs_ranks(tmp_path):
    """As in Llama 3's file, where they are not in that of the places where the token is cut."""
    ranks = write_tiktoken(tmp_path / "ranks", merges=[b"bc", b"abc", b"cd", b"ab", b"abcd"])
    write(open_vocabulary(str(ranks)), tmp_path / "tokenizer.json")
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    assert merges == ["b c", "a bc", "ab c", "c d", "a b", "abc d", "ab cd"]


def rename_token(config, name, new_name):
    for token in config["added_tokens"]:
        if token["content"] == name:
            token["content"] = new_name


def set_at(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(config):
        for key in keys:
            config = config[key]
        config[last] = value

    return change


def without(*keys):
    *keys, last = keys

    def change(config):
        for key in keys:
            config = config[key]
        del config[last]

    return change


def swap_ids(config):
    vocab = config["model"]["vocab"]
    vocab["th"], vocab["he"] = vocab["he"], vocab["th"]


def move_id(config):
    config["model"]["vocab"]["th"] = 257


def rename_in_vocab(old, new):
    def change(config):
        vocab = config["model"]["vocab"]
        vocab[new] = vocab.pop(old)

    return change


SPLIT = ("pre_tokenizer", "pretokenizers", 0)
BYTE_LEVEL = ("pre_tokenizer", "pretokenizers", 1)
INSTEAD = "; use the tokenizer.model instead"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("model", "type", "Unigram"), "model.type is 'Unigram', not 'BPE'" + INSTEAD),
        (set_at("model", None), "model.type is None"),
        (set_at("normalizer", {"type": "NFC"}), "normalizer is {'type': 'NFC'}, not None"),
        (set_at("model", "byte_fallback", True), "model.byte_fallback is True"),
        (set_at("model", "unk_token", "<unk>"), "model.unk_token is '<unk>'"),
        (set_at("model", "dropout", 0.1), "model.dropout is 0.1"),
        (set_at("model", "continuing_subword_prefix", "##"), "continuing_subword_prefix is '##'"),
        (set_at("model", "end_of_word_suffix", "</w>"), "model.end_of_word_suffix is '</w>'"),
        (set_at("model", "ignore_merges", "yes"), "model.ignore_merges is 'yes'"),
        (set_at("model", "vocab", [["a", -1.0]]), "model.vocab is [['a', -1.0]], not a dict"),
        (set_at("model", "merges", None), "model.merges is None, not a list"),
        (set_at("added_tokens", {}), "added_tokens is {}, not a list"),
        (set_at("pre_tokenizer", None), "pre_tokenizer.type is None, not 'Sequence'"),
        (set_at("pre_tokenizer", "type", "ByteLevel"), "pre_tokenizer.type is 'ByteLevel'"),
        (set_at("pre_tokenizer", "pretokenizers", []), "pretokenizers.0.type is None"),
        (set_at(*SPLIT, "type", "Digits"), "pretokenizers.0.type is 'Digits', not 'Split'"),
        (set_at(*SPLIT, "pattern", {"String": " "}), "pattern.Regex is None, not a str"),
        (set_at(*SPLIT, "pattern", "Regex", "(a"), "'(a' is no pattern for words"),
        (set_at(*SPLIT, "behavior", "Removed"), "pretokenizers.0.behavior is 'Removed'"),
        (set_at(*SPLIT, "invert", True), "pretokenizers.0.invert is True, not False"),
        (set_at(*BYTE_LEVEL, "type", "Metaspace"), "pretokenizers.1.type is 'Metaspace'"),
        (set_at(*BYTE_LEVEL, "add_prefix_space", True), "1.add_prefix_space is True, not False"),
        (set_at(*BYTE_LEVEL, "use_regex", True), "1.use_regex is True, not False"),
        (without(*BYTE_LEVEL, "use_regex"), "1.use_regex is None, not False"),
        (
            lambda config: config["pre_tokenizer"]["pretokenizers"].append({"type": "Digits"}),
            "pretokenizers.2 is {'type': 'Digits'}, not None",
        ),
        (set_at("added_tokens", 5, "special", False), "'<|reserved_special_token_2|>', 'single"),
        (set_at("added_tokens", 5, "lstrip", True), "not a plain special token" + INSTEAD),
        (set_at("added_tokens", 5, "rstrip", True), "not a plain special token" + INSTEAD),
        (set_at("added_tokens", 5, "single_word", True), "not a plain special token" + INSTEAD),
        (set_at("added_tokens", 5, "hello"), "added_tokens has 'hello', not a plain special"),
        (set_at("added_tokens", 5, "content", None), "not a plain special token" + INSTEAD),
        (without("added_tokens", 0), "added_tokens has no <|begin_of_text|>" + INSTEAD),
        (without("added_tokens", 1), "added_tokens has no <|end_of_text|>" + INSTEAD),
        (without("added_tokens", 7), f"but none has {N_RANKS + 7};"),
        (set_at("added_tokens", 255, "id", N_RANKS + 256), f"but none has {N_RANKS + 255};"),
        (set_at("added_tokens", 5, "id", N_RANKS + 6), f"but none has {N_RANKS + 5};"),
        (set_at("added_tokens", 5, "id", 7), f"but none has {N_RANKS + 5};"),
        (set_at("added_tokens", 5, "id", "7"), f"but none has {N_RANKS + 5};"),
        (set_at("added_tokens", 5, "content", "the"), "the has id 293 in added_tokens, but"),
        (move_id, "the ids 0 to 543, each once, but none has 256;"),
        (set_at("model", "vocab", "th", [256]), "each once, but none has 256;"),
        (
            rename_in_vocab("!", "東"),
            "model.vocab has '東', which is no byte's character" + INSTEAD,
        ),
        (rename_in_vocab("!", "xyzzy"), "has no token for the single byte 0x21"),
        (set_at("model", "merges", 0, "t q"), "model.merges has 't q', not two tokens that make"),
        (set_at("model", "merges", 0, "t"), "model.merges has 't', not two tokens"),
        (set_at("model", "merges", 0, "t h e"), "model.merges has 't h e', not two tokens"),
        (set_at("model", "merges", 0, ["t", 5]), "model.merges has ['t', 5], not two tokens"),
        (set_at("model", "merges", 0, ["t", ["h"]]), "not two tokens that make a third"),
        (set_at("model", "merges", 0, 7), "model.merges has 7, not two tokens"),
        (swap_ids, "model.merges has 'h e' for id 256 after one for id 257" + INSTEAD),
        (without("model", "merges", 0), "does not make 'th' (id 256) as its rank would" + INSTEAD),
    ],
)
def test_json_unlike_llama3s(llama3_json, tmp_path, change, message):
    config = json.loads(llama3_json.read_text())
    Tokenizer(write_json(tmp_path / "tokenizer.json", config))
    change(config)
    path = write_json(tmp_path / "tokenizer.json", config)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Tokenizer(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("tokens", "merges", "ignore_merges", "culprit"),
    [
        ("ab bc abc", "a+b b+c a+bc ab+c", False, None),  # derived from ranks
        ("ab bc abc", "a+b b+c ab+c", False, None),  # trained: abc is never met as a + bc
        ("ab bc abc", "a+b b+c ab+c", True, None),
        ("ab bc abc", "a+b b+c a+bc", False, "abc"),  # Hugging Face would never make abc
        ("ab bc abc", "a+b b+c a+bc", True, "abc"),  # nor, here, in a longer word
        ("ab bc abc", "a+b ab+c", True, "bc"),
        ("ab bc abc", "a+b b+c", True, "abc"),
        ("ab", "", True, "ab"),
        ("ab cba", "a+b", True, None),
        ("ab cba", "a+b", False, "cba"),
        ("aa aaa ab bc abc cba", "a+a a+aa aa+a a+b b+c ab+c", False, "cba"),
    ],
)
def test_merges_are_held_against_ranks(
    llama3_json, tmp_path, tokens, merges, ignore_merges, culprit
):
    config = json.loads(llama3_json.read_text())
    vocab = dict(list(config["model"]["vocab"].items())[:256])
    vocab |= {token: 256 + n for n, token in enumerate(tokens.split())}
    merges = [merge.replace("+", " ") for merge in merges.split()]
    config["model"] |= {"vocab": vocab, "merges": merges, "ignore_merges": ignore_merges}
    config["added_tokens"] = config["added_tokens"][:2]
    for token, token_id in zip(config["added_tokens"], itertools.count(len(vocab))):
        token["id"] = token_id
    config["post_processor"]["special_tokens"]["<|begin_of_text|>"]["ids"] = [len(vocab)]
    path = write_json(tmp_path / "tokenizer.json", config)
    if culprit:
        with pytest.raises(ValueError, match=f"model.merges does not make '{culprit}'"):
            Tokenizer(path)
    else:
        assert_same_tokenizer(path, Tokenizer(path))


def test_a_token_without_a_pair_needs_ignore_merges(trained, tmp_path):
    config = json.loads(trained.read_text())
    vocab, eot = config["model"]["vocab"], config["added_tokens"][-1]
    vocab["xyz"], eot["id"] = eot["id"], eot["id"] + 1
    path = write_json(tmp_path / "tokenizer.json", config)
    with pytest.raises(ValueError, match=r"model\.merges does not make 'xyz'"):
        Tokenizer(path)
    config["model"]["ignore_merges"] = True
    assert_same_tokenizer(write_json(path, config), Tokenizer(path))
    assert Tokenizer(path).encode("xyz") == [vocab["xyz"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"model_max_length": 5, "bos_token": "x"}',
            r"\(here: model_max_length, bos_token\); use",
        ),
        ("{}", r"no tokenizer.json, which has the key 'model' \(here: no keys at all\); use the"),
        ('{"version": "1.0", "model": {"ty', "is no complete JSON"),
        ('{"model": "\udce9"}', "is no complete JSON"),  # not UTF-8
    ],
)
def test_other_json(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("tokens", "pattern", "message"),
    [
        ({"<|eot_id|>": "<|im_end|>"}, PATTERN, "<|im_end|> has id 297; write a tokenizer.json"),
        ({"<|eot_id|>": "<|eom_id|>", "<|eom_id|>": "<|eot_id|>"}, PATTERN, "<|eot_id|> has id"),
        ({}, r"\s+|\S+", r"the pattern is '\\s+|\\S+'; write a tokenizer.json"),
        (None, PATTERN, "there are 2 special tokens, not 256 after all others"),
    ],
)
def test_what_ranks_cannot_carry(llama3, tmp_path, tokens, pattern, message):
    vocabulary = open_vocabulary(llama3.model_path)
    if tokens is None:
        special = dict(list(vocabulary.special_tokens.items())[:2])
    else:
        special = {tokens.get(name, name): i for name, i in vocabulary.special_tokens.items()}
    changed = TiktokenVocabulary("changed", vocabulary.ranks, special, pattern)
    with pytest.raises(ValueError, match=re.escape(message)):
        write_tiktoken_ranks(changed, tmp_path / "tokenizer.model")
    assert not list(tmp_path.iterdir())
    write(changed, tmp_path / "tokenizer.json")
    again = open_vocabulary(str(tmp_path / "tokenizer.json"))
    assert (again.special_tokens, again.pattern) == (special, pattern)


def test_json_needs_names_that_differ(tmp_path):
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"<|eot_id|>": 256}
    vocabulary = TiktokenVocabulary("v", ranks, _llama3_special_tokens(257), LLAMA3_PATTERN)
    with pytest.raises(ValueError, match=r"<.eot_id.> is a special token and an ordinary one"):
        write(vocabulary, tmp_path / "tokenizer.json")
