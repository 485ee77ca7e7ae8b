"""Grammars for calls: what an answer may be under each tool_choice, and what it may not."""

import json
from pathlib import Path

import pytest

pytest.importorskip("llguidance")

from llama.engine.grammar import Grammar, GrammarState
from llama.errors import InputError, InputTypeError
from llama.generation import Llama
from llama.tokenizer import ChatFormat, Tokenizer
from llama.tool_calls import ToolUse, whole_answer

TINY = Path(__file__).parents[2] / "params" / "tiny"
TAG = "<|python_tag|>"
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def function(name, properties=None, required=(), **more):
    parameters = {"type": "object", "properties": properties or {}, "required": list(required)}
    function = {"name": name, "parameters": parameters, **more}
    return {"type": "function", "function": function}


ADD = function("add", {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/number"}}, ["a"])
ADD["function"]["parameters"]["$defs"] = {"number": {"type": "integer"}}
WEATHER = function("get_weather", {"city": {"type": "string"}}, ["city"])
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [ADD, WEATHER, NOW]

ADD_CALL = '{"name": "add", "parameters": {"a": 1, "b": 2}}'
WEATHER_CALL = '{"name": "get_weather", "parameters": {"city": "Oslo"}}'


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TINY / "tokenizer.model")


def is_allowed(tokenizer, use, answer, tool_format="json"):
    """Whether an answer, in which `|TAG|` stands for the token, follows the grammar to its end."""
    formatter = ChatFormat(tokenizer, tool_format)
    state = GrammarState(Grammar(lark=use.grammar_rules(formatter)), tokenizer)
    ids = []
    for number, text in enumerate(answer.split("|TAG|")):
        ids += [tokenizer.special_tokens[TAG]] * bool(number) + tokenizer.encode(text)
    for token in ids:
        if not state.allowed()[token]:
            return False
        state.advance(token)
    ends = [bool(state.allowed()[token]) for token in sorted(tokenizer.stop_tokens)]
    assert len(set(ends)) == 1
    return ends[0]


REQUIRED = [
    (ADD_CALL, True),
    (f"|TAG|{ADD_CALL}", True),
    ('{"name": "add", "parameters": {"a": 1}}', True),
    ('{"name": "now", "parameters": {}}', True),
    (f"{ADD_CALL}; {WEATHER_CALL}", True),
    ("", False),
    ("|TAG|", False),
    ("Hello", False),
    (ADD_CALL[:-1], False),
    (f"{ADD_CALL} and so on", False),
    (f" {ADD_CALL}", False),
    ('{"name": "remove", "parameters": {}}', False),
    ('{"name": "add", "parameters": {}}', False),  # a is required
    ('{"name": "add", "parameters": {"a": "1"}}', False),
    ('{"name": "add", "parameters": {"a": 1, "c": 2}}', False),
    ('{"name": "now", "parameters": {"a": 1}}', False),
    ('{"name": "add", "parameters": {"a":1}}', False),  # other white space than the models write
]


@pytest.mark.parametrize(("answer", "expected"), REQUIRED)
def test_a_required_call(tokenizer, answer, expected):
    assert is_allowed(tokenizer, ToolUse(TOOLS, "required"), answer) is expected


def test_a_named_function_is_called_once(tokenizer):
    use = ToolUse(TOOLS, NAMED)
    assert is_allowed(tokenizer, use, WEATHER_CALL)
    assert is_allowed(tokenizer, use, f"|TAG|{WEATHER_CALL}")
    assert not is_allowed(tokenizer, use, ADD_CALL)
    assert not is_allowed(tokenizer, use, f"{WEATHER_CALL}; {WEATHER_CALL}")


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_without_parallel_calls_there_is_one(tokenizer, choice):
    use = ToolUse(TOOLS, choice, parallel=False)
    assert is_allowed(tokenizer, use, ADD_CALL)
    assert not is_allowed(tokenizer, use, f"{ADD_CALL}; {WEATHER_CALL}")
    assert not is_allowed(tokenizer, use, f"[{ADD_CALL}, {WEATHER_CALL}]")
    use = ToolUse(TOOLS, choice)
    assert is_allowed(tokenizer, use, f"{ADD_CALL}; {WEATHER_CALL}")


AUTO = [
    ("", True),
    ("Hello {name}", True),
    ("{", True),
    ("[1, 2]", True),
    ("[add]", True),
    ('{"name": "add", "value": 1}', True),
    ('{"name": "remove", "parameters": {}}', True),
    (f"I would write {WEATHER_CALL} here", True),
    (f"{TAG} is a token", True),
    (ADD_CALL, True),
    (f"\n{ADD_CALL}", True),
    (f"|TAG|{ADD_CALL}", True),
    (f"Let me see.|TAG|{ADD_CALL}", True),
    ('{\n  "type": "function",\n  "name":"add", "arguments":{"a": 1}\n}', True),
    (f"{ADD_CALL}; {WEATHER_CALL}", True),
    (f"{ADD_CALL};{WEATHER_CALL}", True),
    (f"{ADD_CALL}\n{WEATHER_CALL}", True),
    (f"[{ADD_CALL}, {WEATHER_CALL}]", True),
    ('{"name": "add", "parameters": {"a": "x"}}', False),
    ('{"name": "add", "parameters": {"c": 1}}', False),
    ('{"name": "add", "parameters": nothing', False),
    ('{"parameters": {"a": "x"}, "name": "add"}', False),
    (f"{ADD_CALL} and so on", False),
    ("|TAG|print(1)", False),
    ("Let me see.|TAG|", False),
    ('|TAG|{"name": "remove", "parameters": {}}', False),
    ("[add(a='x')]", False),
]


@pytest.mark.parametrize(("answer", "expected"), AUTO)
def test_text_or_calls(tokenizer, answer, expected):
    assert is_allowed(tokenizer, ToolUse(TOOLS), answer) is expected


PYTHONIC = [
    ("[add(a=1, b=2)]", True, True),
    ("[add(a=1)]", True, True),
    ('[get_weather(city="Oslo"), now(), add(a=-3)]', True, True),
    ("|TAG|[now()]", True, True),
    ("[add(b=2)]", False, False),
    ("[add(a=1, c=2)]", False, False),
    ("[add(a=1, )]", False, False),
    ("[add(a=1) and", False, False),
    ("[remove()]", False, True),
    ("[]", False, True),
    ("Hello", False, True),
    ("Let me see.|TAG|[now()]", False, True),
]


@pytest.mark.parametrize(("answer", "required", "auto"), PYTHONIC)
def test_pythonic_calls(tokenizer, answer, required, auto):
    assert is_allowed(tokenizer, ToolUse(TOOLS, "required"), answer, "pythonic") is required
    assert is_allowed(tokenizer, ToolUse(TOOLS), answer, "pythonic") is auto


def test_arguments_that_are_no_list_are_json_in_pythonic_form_too(tokenizer):
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    use = ToolUse([tool, NOW], "required")
    call = '{"name": "add", "parameters": {"x": 1, "y z": 2}}'
    assert is_allowed(tokenizer, use, call, "pythonic")
    assert not is_allowed(tokenizer, use, "[now()]", "pythonic")


def test_builtin_tools(tokenizer):
    call = '|TAG|brave_search.call(query="the price of \\"gold\\"")'
    for use in (
        ToolUse(None, "required", builtin_tools=["brave_search"]),
        ToolUse(TOOLS, "auto", builtin_tools=["brave_search", "wolfram_alpha"]),
        ToolUse(
            TOOLS,
            {"type": "function", "function": {"name": "brave_search"}},
            builtin_tools=["brave_search"],
        ),
    ):
        assert is_allowed(tokenizer, use, call)
        assert not is_allowed(tokenizer, use, call.replace("query", "q"))


def test_every_answer_that_is_allowed_is_read_as_the_calls_that_it_is(tokenizer):
    """The grammar's calls are the parser's, and its text is the parser's text."""
    cases = [(TOOLS, "json", answer, ok) for answer, ok in AUTO]
    cases += [(TOOLS, "pythonic", answer, ok) for answer, _, ok in PYTHONIC]
    for tools, tool_format, answer, expected in cases:
        formatter = ChatFormat(tokenizer, tool_format)
        parser = ToolUse(tools).parser(formatter, [1])
        events = []
        for number, text in enumerate(answer.split("|TAG|")):
            if number:
                events += parser.feed(tokenizer.special_tokens[TAG], TAG)
            events += parser.feed(65, text)
        text, calls = whole_answer(events + parser.finish())
        if expected and calls:
            assert text in ("", "Let me see.")
            for call in calls:
                assert json.loads(call["function"]["arguments"]).keys() <= {"a", "b", "city"}
        elif expected:
            assert text == answer


def test_schemas_that_are_not_supported(tokenizer):
    properties = {"a": {"type": "string", "format": "uri-reference"}}
    assert is_allowed(
        tokenizer, ToolUse([function("f", properties)]), '{"name": "f", "parameters": {"a": "x"}}'
    )
    strict = ToolUse([function("f", properties, strict=True)])
    with pytest.raises(InputError, match="Unknown format: uri-reference"):
        is_allowed(tokenizer, strict, "")
    wrong = ToolUse([function("f", {"a": {"type": "text"}})])
    with pytest.raises(InputError, match="Invalid type: text"):
        is_allowed(tokenizer, wrong, "")


def test_text_in_definitions_is_no_rule(tokenizer):
    key = 'a" /.*/ // # \\ \n%json'
    use = ToolUse([function("x/y.z-1:b", {key: {"type": "string"}}, [key])], "required")
    call = json.dumps({"name": "x/y.z-1:b", "parameters": {key: "é"}}, ensure_ascii=False)
    assert is_allowed(tokenizer, use, call)
    assert not is_allowed(tokenizer, use, call.replace("y.z", "yxz"))


@pytest.mark.parametrize(
    ("tools", "choice", "error", "message"),
    [
        (None, "required", InputError, "tool_choice is 'required', and there are no tools"),
        ([], NAMED, InputError, "there are no tools"),
        (TOOLS, "any", InputError, "tool_choice is auto, none, required or .* not 'any'"),
        (TOOLS, "add", InputError, "not 'add'"),
        (TOOLS, None, InputError, "not None"),
        (TOOLS, {"type": "function"}, InputError, "tool_choice is auto, none, required or"),
        (TOOLS, {**NAMED, "x": 1}, InputError, "tool_choice is auto, none, required or"),
        ([ADD], NAMED, InputError, "names 'get_weather', which is not among the tools: add"),
        ("x", "auto", InputTypeError, "tools must be a list"),
    ],
)
def test_wrong_choices(tools, choice, error, message):
    with pytest.raises(error, match=message):
        ToolUse(tools, choice)


def test_no_tools_no_grammar(tokenizer):
    for use in (ToolUse(), ToolUse([]), ToolUse(TOOLS, "none"), ToolUse(None, "none")):
        assert not use
        assert list(use.tools) == []
        assert use.grammar_rules(ChatFormat(tokenizer)) is None


# The bundled model


CALCULATOR = function("calculator", {"expression": {"type": "string"}}, ["expression"])
CALCULATOR["function"]["description"] = "Calculates"
QUESTION = {"role": "user", "content": "What is 4718 + 2964?"}


@pytest.fixture(scope="module")
def llama():
    return Llama.build(TINY)


def ask(llama, dialog, **options):
    (result,) = llama.chat_completion([dialog], temperature=0, max_gen_len=60, **options)
    return result["generation"]


def test_the_bundled_model_calls_its_calculator_and_answers_with_the_result(llama):
    answer = ask(llama, [QUESTION], tools=[CALCULATOR])
    (call,) = answer["tool_calls"]
    assert answer == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert call["function"] == {"name": "calculator", "arguments": '{"expression": "4718 + 2964"}'}
    result = {"role": "tool", "content": "7682", "tool_call_id": call["id"]}
    last = ask(llama, [QUESTION, answer, result], tools=[CALCULATOR])
    assert last == {"role": "assistant", "content": "4718 + 2964 = 7682."}


def test_choices_of_the_bundled_model(llama):
    named = {"type": "function", "function": {"name": "calculator"}}
    for choice in ("required", named):
        answer = ask(llama, [QUESTION], tools=[CALCULATOR, WEATHER], tool_choice=choice)
        assert [c["function"]["name"] for c in answer["tool_calls"]] == ["calculator"]
    without = ask(llama, [QUESTION])
    assert ask(llama, [QUESTION], tools=[CALCULATOR], tool_choice="none") == without
    assert "tool_calls" not in without
    greeting = [{"role": "user", "content": "Hello! How are you?"}]
    answer = ask(llama, greeting, tools=[CALCULATOR])
    assert answer["content"][0].isalpha()
    assert "tool_calls" not in answer


def test_a_stream_has_the_calls_of_the_whole_answer(llama):
    dialogs = [[QUESTION], [{"role": "user", "content": "Hello! How are you?"}]]
    options = {"temperature": 0.9, "seed": 3, "n": 2, "max_gen_len": 40, "tools": [CALCULATOR]}
    whole = [result["generation"] for result in llama.chat_completion(dialogs, **options)]
    streamed = [{"role": "assistant", "content": ""} for _ in whole]
    for chunk in llama.chat_completion_stream(dialogs, **options):
        streamed[chunk.index]["content"] += chunk.text
        if chunk.tool_calls:
            streamed[chunk.index].setdefault("tool_calls", []).extend(chunk.tool_calls)
    assert streamed == whole
    ids = [call["id"] for answer in whole for call in answer.get("tool_calls", ())]
    assert len(set(ids)) == len(ids) > 0


def test_an_answer_that_is_cut_off_in_a_call_is_text(llama):
    (result,) = llama.chat_completion(
        [[QUESTION]], temperature=0, max_gen_len=15, tools=[CALCULATOR]
    )
    assert result["finish_reason"] == "length"
    assert result["generation"]["content"].startswith('{"name": "calculator"')
    assert "tool_calls" not in result["generation"]


def test_a_call_that_ends_as_a_message_ends_the_answer(llama):
    """By `<|eom_id|>`, which Llama 3.1 writes behind a call where the prompt says ipython."""
    ends = {name: llama.tokenizer.special_tokens[name] for name in ("<|eom_id|>", "<|eot_id|>")}
    options = {"temperature": 0, "seed": 1, "max_gen_len": 60, "tools": [CALCULATOR]}
    (expected,) = llama.chat_completion([[QUESTION]], **options)
    biased = {**options, "logit_bias": {ends["<|eot_id|>"]: -100.0, ends["<|eom_id|>"]: 20.0}}
    (result,) = llama.chat_completion([[QUESTION]], tool_choice="required", **biased)
    assert result == expected
    prompt = llama.formatter.encode_dialog_prompt([QUESTION], [CALCULATOR])
    rules = ToolUse([CALCULATOR], "required").grammar_rules(llama.formatter)
    settings = {"temperature": 0, "logit_bias": biased["logit_bias"]}
    settings["grammar"] = Grammar(lark=rules)
    (request,) = llama.requests("prompts", [prompt], settings, 60)
    llama.engine.add(request)
    for _ in llama.engine.run([request]):
        pass
    assert (request.finish_reason, request.stopped_by) == ("stop", ends["<|eom_id|>"])


def test_a_prefix_may_begin_a_call(llama):
    answer = ask(llama, [QUESTION], tools=[CALCULATOR], prefix='{"name": "')
    assert [c["function"]["name"] for c in answer["tool_calls"]] == ["calculator"]


def test_an_answer_is_continued(llama):
    start = {"role": "assistant", "content": "4718 + 2964 ="}
    result = {"role": "tool", "content": "7682"}
    call = {"function": {"name": "calculator", "arguments": {"expression": "4718 + 2964"}}}
    dialog = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, result, start]
    answer = ask(llama, dialog, tools=[CALCULATOR], continue_final_message=True)
    assert answer == {"role": "assistant", "content": " 7682."}


def test_a_grammar_beside_tools(llama):
    grammar = Grammar(choice=["yes", "no"])
    assert ask(llama, [QUESTION], tools=[CALCULATOR], grammar=grammar)["content"] in ("yes", "no")
    with pytest.raises(InputError, match="a grammar and a required call exclude each other"):
        ask(llama, [QUESTION], tools=[CALCULATOR], tool_choice="required", grammar=grammar)
    with pytest.raises(InputTypeError, match="grammar must be a Grammar, got 'yes'"):
        ask(llama, [QUESTION], tools=[CALCULATOR], grammar="yes")


def test_a_call_or_an_answer_that_matches_a_schema(llama):
    properties = {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"]}
    schema |= {"$defs": {"age": {"type": "integer"}}, "additionalProperties": False}
    for grammar in (Grammar(json_schema=schema), Grammar(json_schema=json.dumps(schema))):
        answer = ask(llama, [QUESTION], tools=[CALCULATOR, WEATHER], grammar=grammar)
        assert [c["function"]["name"] for c in answer["tool_calls"]] == ["calculator"]
    both = ToolUse([CALCULATOR, ADD]).call_or_answer_schema(schema)

    def is_allowed(answer):
        state = GrammarState(Grammar(json_schema=both), llama.tokenizer)
        for token in llama.tokenizer.encode(answer):
            if not state.allowed()[token]:
                return False
            state.advance(token)
        return bool(state.allowed()[llama.tokenizer.eos_id])

    assert is_allowed(ADD_CALL)
    assert is_allowed('{"name": "add", "age": 3}')
    for answer in (
        "Hello",
        '{"name": "Tom", "parameters": {}}',
        '{"name": "add", "parameters": {"a": 1, "b": "2"}}',
        '{"name": "Tom", "age": "old"}',
    ):
        assert not is_allowed(answer)
    with pytest.raises(InputError, match="built-in tools and a JSON schema exclude each other"):
        ask(llama, [QUESTION], builtin_tools=["brave_search"], grammar=Grammar(json_schema=schema))
    with pytest.raises(InputError, match="json_schema is not a JSON object"):
        ask(llama, [QUESTION], tools=[CALCULATOR], grammar=Grammar(json_schema="{"))


def test_unknown_options_of_a_chat(llama):
    with pytest.raises(TypeError, match="unknown option 'tool_choise'"):
        ask(llama, [QUESTION], tools=[CALCULATOR], tool_choise="auto")
