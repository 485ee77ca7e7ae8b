"""What the generator says is checked by readers of its text that share nothing with its making:
sums are reckoned by Python, facts are looked up in the context by patterns.
"""

import json
import random
import re
from collections import Counter
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples.tiny_skills import Skills, exam, fillers, made_up_words, score
from examples.tiny_skills.facts import RELATIONS, TOLD_REPLY, UNKNOWN, Fact, Turn
from examples.tiny_skills.fillers import FILLERS, SHARED, is_held_out, is_held_out_pair
from examples.tiny_skills.forms import RULES, TELLINGS
from examples.tiny_skills.measure import SCORES
from examples.tiny_skills.tools import CALCULATOR, calls_for, ends_with_number, evaluate, offer
from llama import ChatFormat, Tokenizer

WORDS = ("cat", "tree", "happy", "rainbow", "letters", "spoon")
NEW_WORDS = ("walnut", "harbor", "velvet", "lantern")
TALK = (
    (("Hi", "Hello"), ("Hello! How can I help you?", "Hi! How are you today?")),
    (("Thank you!", "Thanks!"), ("You are welcome!",)),
)
STORIES = (
    "Once upon a time there was a little girl named Zilla. She had a ball. It was red. The end.",
    "One day, a big bear called Brumm met a fox named Rufo. They played. They went home. The end.",
    "It was a sunny day. Nobody had a name. They all went home. They slept well.",
)
NEW_STORIES = (
    "There was a lion named Moro. It slept. It woke up. The end.",
    "A girl saw a small frog called Pim. They swam. It was fun. They were glad.",
)
LEARNED = ("facts", "sums", "style", "names", "tools", "spelling")
NAMES = {*fillers.GIRLS, *fillers.BOYS, *fillers.PETS}


def skills(seed: int = 1, held_out: bool = False, stories: tuple[str, ...] = ()) -> Skills:
    words = NEW_WORDS if held_out else WORDS
    return Skills(random.Random(seed), words, TALK, stories, held_out)


def dialogs(skill: str, number: int = 400, **settings) -> list:
    maker = skills(**settings)
    return [getattr(maker, skill)() for _ in range(number)]


def text(dialog) -> str:
    return "\n".join(message["content"] for message in dialog)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(str(Path(__file__).parents[1] / "params" / "tiny" / "tokenizer.model"))


@pytest.fixture(scope="module")
def examples() -> dict:
    return exam(skills(seed=2, held_out=True, stories=NEW_STORIES))


@pytest.mark.parametrize("skill", LEARNED)
def test_the_same_seed_makes_the_same_dialogs(skill: str) -> None:
    made = dialogs(skill, 50, stories=STORIES)
    assert made == dialogs(skill, 50, stories=STORIES)
    assert made != dialogs(skill, 50, stories=STORIES, seed=2)
    assert len({text(dialog) for dialog in made}) > 30


@pytest.mark.parametrize("skill", LEARNED)
def test_dialogs_fit_the_chat_format_and_the_context(skill: str, tokenizer: Tokenizer) -> None:
    chat, lengths = ChatFormat(tokenizer), []
    for dialog in dialogs(skill, 200, stories=STORIES):
        roles = [message["role"] for message in dialog]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns[:1] + turns[-1:] == ["user", "assistant"]
        assert all(
            after
            in {"user": ["assistant"], "ipython": ["assistant"]}.get(role, ["user", "ipython"])
            for role, after in pairwise(turns)
        )
        assert all(message["content"] == message["content"].strip() != "" for message in dialog[1:])
        prompt = chat.encode_dialog_prompt(dialog[:-1])
        lengths.append(len(prompt) + len(tokenizer.encode(dialog[-1]["content"])) + 1)
    assert max(lengths) <= 1024
    assert skill == "tools" or max(lengths) <= 500


# What is held out.


@pytest.mark.parametrize("kind", FILLERS)
def test_each_side_of_the_split_has_fillers_of_its_own(kind: str) -> None:
    trained, held_out = (
        {maker.pick(kind) for _ in range(300)} for maker in (skills(), skills(held_out=True))
    )
    if kind not in SHARED:
        assert not trained & held_out
        assert len(trained) >= len(held_out) >= 3
        assert all(map(is_held_out, held_out))


def test_names_may_end_with_any_word() -> None:
    assert fillers.with_end("by the window", "cloud") == "by the cloud"
    assert fillers.with_end("New York", "cloud") == "New Cloud"
    assert fillers.with_end("Mia", "cloud") == "Cloud"
    assert fillers.with_end("by the window", "Jackos") == "by the jackos"
    maker = replace(skills(), words=("lumbago", *map(str.lower, NAMES)), strange=0.5)
    for kind in FILLERS:
        picked = [maker.pick(kind) for _ in range(300)]
        odd = sum(name.lower().rpartition(" ")[2] in maker.words for name in picked)
        assert (odd > 60) == (kind in fillers.NAMES)
        assert kind in SHARED or not any(map(is_held_out, picked))


@pytest.mark.parametrize("skill", LEARNED)
def test_no_held_out_name_number_or_word_is_trained(skill: str) -> None:
    words = set(re.findall(r"\w+", "\n".join(map(text, dialogs(skill, 600)))))
    assert not words & {name for name in NAMES if is_held_out(name)}
    assert not words & {*NEW_WORDS}


def test_no_example_for_measuring_is_trained(examples: dict) -> None:
    trained = {
        json.dumps(dialog[:index])
        for skill in LEARNED
        for dialog in dialogs(skill, 1500, stories=STORIES)
        for index in range(1, len(dialog))
    }
    for name, those in examples.items():
        asked = {json.dumps(example.dialog[:-1]) for example in those}
        assert len({json.dumps(example.dialog) for example in those}) == len(those)
        assert len(those) == (200 if name != "spelling" else len(NEW_WORDS))
        assert not asked & trained
    assert examples.keys() == {*SCORES, "spelling"}


def test_examples_for_measuring_are_of_held_out_names(examples: dict) -> None:
    for name in ("facts", "facts that are missing", "names", "word problems", "tool calls"):
        words = set(
            re.findall(r"\w+", "\n".join(text(example.dialog) for example in examples[name]))
        )
        kept = {found for found in NAMES if is_held_out(found)}
        assert not words & (NAMES - kept)
        assert words & kept


def test_pairs_are_held_out_in_any_order_and_of_two_digits_only() -> None:
    pairs = [(a, b) for a in range(100) for b in range(100)]
    assert all(is_held_out_pair(a, b) == is_held_out_pair(b, a) for a, b in pairs)
    assert not any(is_held_out_pair(a, b) for a, b in pairs if min(a, b) < 10)
    assert 0.08 < sum(is_held_out_pair(a, b) for a, b in pairs if min(a, b) >= 10) / 8100 < 0.12


SUM = re.compile(r"(?<![-+*/] )(?<!\d)(-?\d+) ([-+*/]) (\d+) = (-?\d+)(?:\.0)?\b")


@pytest.mark.parametrize("skill", ["sums", "style", "names", "tools"])
def test_sums_are_right_and_their_pairs_trained(skill: str) -> None:
    found = Counter()
    for dialog in dialogs(skill, 1500):
        for a, op, b, result in SUM.findall(text(dialog)):
            a, b, result = int(a), int(b), int(result)
            assert eval(f"{a} {op} {b}") == result
            if op in "+-" or skill == "tools":
                assert not is_held_out_pair(a, b)
            found[op, min(a, b) > 9 and max(a, b) < 100, result < 0] += 1
    assert found["+", True, False] > 20
    assert found["-", True, False] > 20
    assert (skill == "tools") == (found["/", True, False] + found["/", False, False] > 0)
    if skill != "tools":
        assert found["-", True, True] > (0 if skill != "names" else -1)


def test_every_pair_that_is_trained_comes_in_every_form() -> None:
    maker = skills()
    questions = [maker.sum("+").question for _ in range(5000)]
    forms = Counter(re.sub(r"\d+", "N", question).lower().rstrip("?.") for question in questions)
    assert len(forms) == 8
    assert min(forms.values()) > 400


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("addition", "+"),
        ("subtraction", "-"),
        ("subtraction below zero", "-"),
        ("multiplication", "*"),
        ("word problems", None),
    ],
)
def test_sums_for_measuring(name: str, op: str | None, examples: dict) -> None:
    for example in examples[name]:
        question, answer = (message["content"] for message in example.dialog)
        numbers = sorted(map(int, re.findall(r"(?<!\d)\d+", question)))
        a, used, b, result = SUM.match(answer).groups()
        a, b, result = int(a), int(b), int(result)
        assert sorted((a, b)) == numbers
        assert {"+": a + b, "-": a - b, "*": a * b}[used] == result
        assert used == op or op is None
        if name == "multiplication":
            assert max(a, b) <= 10
        else:
            assert min(a, b) >= 10
            assert is_held_out_pair(a, b)
            assert (result < 0) == (name == "subtraction below zero")


def test_what_is_weak_may_come_more_often() -> None:
    maker = replace(skills(), shares={"unknown": 1}, operators="-")
    dialogs = [maker.asked(3).dialog for _ in range(100)]
    answers = [
        turn["content"] for dialog in dialogs for turn in dialog if turn["role"] == "assistant"
    ]
    assert {*answers} == {UNKNOWN, TOLD_REPLY}
    sums = [SUM.findall(text(maker.sums())) for _ in range(100)]
    assert {op for those in sums for _, op, _, _ in those} == {"-"}


def test_too_hard_sums_are_not_known() -> None:
    unknown = [
        question["content"]
        for dialog in dialogs("sums", 1500)
        for question, answer in pairwise(dialog)
        if answer["content"] == UNKNOWN
    ]
    assert len(unknown) > 50
    assert all(max(map(int, re.findall(r"\d+", question))) > 10 for question in unknown)


def test_words_are_spelled() -> None:
    asked = set()
    for dialog in dialogs("spelling", 500):
        turns = [message["content"] for message in dialog if message["role"] != "system"]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            word = answer.replace("-", "").lower()
            assert re.search(rf"\b{word}\b", question)
            assert answer == "-".join(word.upper())
            asked.add(word)
    assert asked == {*WORDS}


# Facts.

LISTED = {
    "animal": fillers.ANIMALS,
    "color": fillers.COLORS,
    "food": fillers.FOODS,
    "hobby": fillers.HOBBIES,
    "job": fillers.JOBS,
    "language": fillers.LANGUAGES,
    "spot": fillers.SPOTS,
    "transport": fillers.TRANSPORT,
}
MATCHED = {
    "person": "[A-Z][a-z]+",
    "pet": "[A-Z][a-z]+",
    "town": "[A-Z][a-z]+(?: [A-Z][a-z]+)?",
    "thing": "[Tt]he [a-z]+ [a-z]+",
    "shop": "[Tt]he [a-z]+ [a-z]+(?: [a-z]+)?",
    "event": "[Tt]he [a-z]+ [a-z]+",
    "train": "[Tt]he [a-z]+ to [A-Z][a-z]+(?: [A-Z][a-z]+)?",
    "book": '"The [A-Za-z ]+"',
    "number": r"\d+",
    "age": r"\d+",
    "time": r"\d+:\d\d",
}


def pattern(form: str, relation, pronouns: bool = False) -> re.Pattern:
    """Of a form of a relation: groups s, k and v."""
    subject = f"(?P<s>{MATCHED[relation.subject]})"
    if pronouns:
        form = re.sub(r"^\{s\}'s", "{own}", form)
        form = re.sub(r"^\{s\}", "{it}", form)
    kinds = "|".join(LISTED.get(relation.kind, [])) or MATCHED.get(relation.kind, ".+?")
    form = re.escape(form).replace(r"\{", "{").replace(r"\}", "}")
    parts = {
        "s": subject,
        "v": f"(?P<v>{kinds})",
        "k": f"(?P<k>{'|'.join(relation.of)})",
        "own": rf"(?:His|Her|Its|(?P<s>{MATCHED[relation.subject]})'s)",
        "it": f"(?:He|She|It|(?P<s>{MATCHED[relation.subject]}))",
    }
    return re.compile(re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], form) + "$")


def lower(found: str) -> str:
    return found[:1].lower() + found[1:]


SAYS = [
    (relation, pattern(form, relation, pronouns=True))
    for relation in RELATIONS
    for form in relation.says
]
ASKS = [(relation, pattern(form, relation)) for relation in RELATIONS for form in relation.asks]
WHO = [(relation, pattern(form, relation)) for relation in RELATIONS for form in relation.who]
ALL = re.compile("(?:Tell me|What do you know|What is said) about (.+?)[.?]?$", re.IGNORECASE)


def read(context: str) -> list[tuple]:
    """(relation, subject, k, value) of all sentences, pronouns standing for the last subject."""
    facts, last = [], ""
    bare = re.sub(r"(^|(?<=: ))(\[\d+\]|\d+\.|-) ", "", context, flags=re.MULTILINE)
    for sentence in re.findall(r"\s*(\S[^\n]*?[.?!:])(?=\s|$)", bare):
        subjects = []
        for relation, form in SAYS:
            if match := form.match(sentence):
                groups = match.groupdict()
                subject = groups["s"] or last
                subjects.append(subject)
                facts.append((relation, lower(subject), groups.get("k", ""), groups["v"]))
        last = subjects[0] if subjects else last
    return facts


def look_up(question: str, facts: list[tuple]) -> set[str]:
    """All answers that the facts give to a question."""
    if match := ALL.match(question):
        told = [
            relation.says[0].format(s=subject, k=k, v=value)
            for relation, subject, k, value in facts
            if subject == lower(match[1])
        ]
        return {" ".join(dict.fromkeys(told))} if told else set()  # two relations may say the same
    question = question[:1].upper() + question[1:].rstrip("?") + "?"
    found, understood = [], False
    for relation, form in ASKS:
        if match := form.match(question):
            understood, groups = True, match.groupdict()
            key = (relation, lower(groups["s"]), groups.get("k", ""))
            found += [fact for fact in facts if fact[:3] == key]
    for relation, form in WHO:
        if match := form.match(question):
            understood, groups = True, match.groupdict()
            key = (relation, groups.get("k", ""), groups["v"])
            found += [fact for fact in facts if (fact[0], *fact[2:]) == key]
    assert understood, question
    return {relation.says[0].format(s=s, k=k, v=v) for relation, s, k, v in found}


@pytest.mark.parametrize("held_out", [False, True])
def test_facts_are_answered_as_the_context_says(held_out: bool) -> None:
    found = Counter[str]()
    for dialog in dialogs("facts", 1500, held_out=held_out):
        context = text([message for message in dialog if message["role"] != "assistant"])
        facts = read(context)
        told = Counter((relation, k, value) for relation, _, k, value in facts)
        assert max(told.values(), default=1) == 1  # or it could not be asked who it is
        assert all(subject != lower(value) for _, subject, _, value in facts)
        for asked, answer in pairwise(dialog):
            reply = answer["content"]
            if asked["role"] != "user" or reply == "I will remember that.":
                continue
            lines = re.split(r"\n|(?<=[.]) ", asked["content"].replace("Question: ", ""))
            question = [line for line in lines if understands(line)][-1]
            answers = {answer.lower().removesuffix(".") for answer in look_up(question, facts)}
            expected = set() if reply == UNKNOWN else {reply.lower().removesuffix(".")}
            assert answers == expected, (dialog, question)
            assert reply[:1] == reply[:1].upper()
            found["about" if ALL.match(question) else "one"] += bool(answers)
            found["unknown"] += not answers
    assert 0.15 < found["unknown"] / found.total() < 0.4
    assert 0.1 < found["about"] / found.total() < 0.3


def understands(line: str) -> bool:
    line = line[:1].upper() + line[1:].rstrip("?") + "?"
    return bool(ALL.match(line)) or any(form.match(line) for _, form in ASKS + WHO)


def test_facts_are_retold_in_any_order() -> None:
    maker, alike, turned = skills(), 0, 0
    for _ in range(300):
        sentences = maker.retold().removesuffix(".").split(". ")
        quarter = len(sentences) // 4
        parts = [sentences[i : i + quarter] for i in range(0, len(sentences), quarter)]
        assert len(parts) == 4
        if all(Counter(part) == Counter(parts[0]) for part in parts):
            alike += 1
            turned += any(part != parts[0] for part in parts)
    assert 120 < alike < 220
    assert turned > 100


def test_facts_stand_everywhere_and_are_asked_for_anywhere() -> None:
    made = dialogs("facts", 1000)
    first = [dialog[0] for dialog in made]
    assert 300 < sum(message["role"] == "system" for message in first) < 600
    contexts = "\n\n".join(message["content"] for message in first)
    signs = ("\n- ", "\n2. ", "\n[2] ", "Context:\n", "Question: ", "passages", "remember", " She ")
    for sign in (*signs, " Her ", " He ", " His ", " It "):
        assert contexts.count(sign) > 10, sign
    questions = [message["content"] for dialog in made for message in dialog[1:]]
    assert sum(each[:1].islower() for each in questions) > 20
    asked = {relation for each in questions for relation, form in ASKS if form.match(each)}
    assert asked == {*RELATIONS}
    assert sum(each == "I will remember that." for each in questions) > 50
    alone = [dialog for dialog in made if len(dialog) == 2 and understands(dialog[0]["content"])]
    assert len(alone) > 10
    assert all(dialog[1]["content"] == UNKNOWN for dialog in alone)


def test_nothing_is_asked_that_might_be_inferred() -> None:
    [friend] = [each for each in RELATIONS if each.subject == each.kind == "person"]
    [age] = [relation for relation in RELATIONS if relation.kind == "age"]
    facts = [Fact(friend, "Anna", "cousin", "Bella"), Fact(age, "Bella", "", "7")]
    maker, text = skills(), "Anna's cousin is Bella. Bella is 7 years old."
    questions = {maker._unknown(facts, text).question for _ in range(2000)}
    assert "How old is Anna?" in questions
    assert "Who is Anna's boss?" in questions
    assert not {f"Who is Bella's {of}?" for of in friend.of} & questions
    assert not {"How old is Bella?", "Who is Anna's cousin?"} & questions


def test_a_pronoun_stands_for_one_who_was_named_last() -> None:
    [friend] = [each for each in RELATIONS if each.subject == each.kind == "person"]
    [age] = [relation for relation in RELATIONS if relation.kind == "age"]
    [job] = [relation for relation in RELATIONS if relation.kind == "job"]
    facts = [
        Fact(job, "Anna", "", "a cook"),
        Fact(friend, "Anna", "boss", "Bella"),
        Fact(age, "Anna", "", "7"),
    ]
    maker = skills()
    passages = {passage for _ in range(300) for passage in maker._passages(facts)}
    assert any(re.search(r"cook\. (Her|She) ", passage) for passage in passages)
    assert any(re.search(r"Bella\. Anna('s age)? is ", passage) for passage in passages)
    assert not any(re.search(r"Bella\. (Her|She) ", passage) for passage in passages)


def test_a_fact_has_answers_of_several_lengths() -> None:
    [job] = [relation for relation in RELATIONS if relation.kind == "job"]
    turn = astuple(Fact(job, "Anna", "", "a baker").asked(random.Random(1)))
    assert turn[1:] == ("Anna is a baker.", "Baker.", "A baker.", "Anna is a baker.", False)
    turn = astuple(Fact(job, "Anna", "", "a bus driver").asked_who(random.Random(1)))
    assert turn[0] in ("Who is a bus driver?", "Who works as a bus driver?")
    assert turn[1:] == ("Anna is a bus driver.", "Anna.", "Anna.", "Anna is a bus driver.", False)
    turn = astuple(Fact(job, "Anna", "", "a bus driver").asked(random.Random(1)))
    assert turn[1:3] == ("Anna is a bus driver.", None)
    [spot] = [each for each in RELATIONS if (each.subject, each.kind) == ("thing", "spot")]
    turn = astuple(Fact(spot, "the red pen", "", "on the old wooden table").asked(random.Random(1)))
    told = "The red pen is on the old wooden table."
    assert turn[1:] == (told, None, None, told, False)


def test_names_in_stories_are_asked_for() -> None:
    maker = skills(stories=STORIES)
    answers = Counter()
    for _ in range(300):
        found = maker._story_questions([maker.rng.random() < 0.5, maker.rng.random() < 0.5])
        assert found is not None
        [passage], turns = found
        for turn in turns:
            noun = next(noun for noun in ("girl", "bear", "fox", "") if noun in turn.question)
            name = {"girl": "Zilla.", "bear": "Brumm.", "fox": "Rufo.", "": UNKNOWN}[noun]
            known = f"The name of the {noun} is {name}"
            assert turn.answer == (known if noun and noun in passage else UNKNOWN)
            answers[turn.answer] += 1
    assert len(answers) == 4
    assert skills(stories=STORIES[2:])._story_questions([False]) is None


# Rules of style.


TURN = Turn("What is 2 + 3?", "2 + 3 is 5.", "5.", "5.", "The answer is 5.")


@pytest.mark.parametrize(
    ("says", "answer", "wrong"),
    [
        ("Answer in capital letters.", "2 + 3 IS 5.", "2 + 3 Is 5."),
        ("Use no capital letters.", "2 + 3 is 5.", "2 + 3 Is 5."),
        ("End every answer with '{x}.'", "2 + 3 is 5. Over.", "Over. It is 5."),
        ("Begin each answer with '{x},'", "Over, 2 + 3 is 5.", "Over 5, it is 5."),
        ("Write your answers in quotes.", '"2 + 3 is 5."', '"2 + 3 is 5.'),
        ("Talk like a pirate.", "Arrr! 2 + 3 is 5.", "It is 5, arrr!"),
        ("Say everything twice.", "2 + 3 is 5. 2 + 3 is 5.", "2 + 3 is 5. 2 + 3 is 6."),
        ("Be excited: use exclamation marks.", "2 + 3 is 5!", "Oh! 2 + 3 is 5."),
        ("Repeat the question before you answer.", "What is 2 + 3? 2 + 3 is 5.", "What is 5."),
        ("Answer in one word.", "5.", "It's 5."),
        ("Answer with at most three words.", "5.", "It is just 5."),
        ("Answer in a full sentence.", "The answer is 5.", "Just 5."),
    ],
)
def test_rules_change_answers_and_know_those_that_obey(says: str, answer: str, wrong: str) -> None:
    [rule] = [rule for rule in RULES if says in rule.says]
    assert rule.apply(TURN, "Over") == answer
    assert rule.obeyed(TURN, "Over", answer)
    assert not rule.obeyed(TURN, "Over", wrong)
    untold = replace(TURN, word=None, few=None, sentence=None)
    assert (rule.apply(untold, "Over") is None) == (answer in ("5.", "The answer is 5."))


def test_style_examples_obey_and_others_do_not(examples: dict) -> None:
    rules = Counter()
    for example in examples["style"]:
        system = example.dialog[0]["content"]
        [number] = [
            number
            for number, rule in enumerate(RULES)
            if any(
                re.search(re.escape(form).replace(r"\{x\}", r"\w+"), system) for form in rule.says
            )
        ]
        rules[number] += 1
        answer = example.dialog[-1]["content"]
        assert example.right(answer)
        assert not example.right("")
    assert len(rules) == len(RULES)


def test_other_small_talk_that_obeys_is_right_too() -> None:
    maker, others = skills(), 0
    for _ in range(2000):
        example = maker.styled()
        if example.dialog[-2]["content"] == "Thanks!" and "pirate" in example.dialog[0]["content"]:
            assert example.right("Arrr! It is nothing.")
            assert not example.right("It is nothing.")
            others += 1
    assert others


# Names that are kept.


def test_what_users_said_is_remembered_and_nothing_else() -> None:
    says, asks, known, unknown = [], {}, 0, 0
    for telling in TELLINGS:
        for of in telling.of:
            for form in telling.says:
                form = re.escape(form.replace("{k}", of)).replace(r"\{v\}", r"([\w ]+)")
                says.append((telling, of, re.compile(form)))
            for ask in telling.asks:
                asks.setdefault(ask.replace("{k}", of), []).append((telling, of))
    for dialog in dialogs("names", 800):
        told = {}
        for message, reply in pairwise(dialog):
            if message["role"] != "user":
                continue
            for telling, of, form in says:
                match = form.fullmatch(message["content"])
                if match and not ("years" in match[1] and telling.kind == "person"):
                    told[telling, of] = match[1]
            if asked := asks.get(message["content"]):
                answers = {
                    telling.answer.format(k=of, v=told[telling, of])
                    for telling, of in asked
                    if (telling, of) in told
                }
                assert answers == (set() if reply["content"] == UNKNOWN else {reply["content"]})
                known += bool(answers)
                unknown += not answers
    assert 0.15 < unknown / (known + unknown) < 0.35


# Tools.


def offered(dialog) -> list[dict]:
    """The definitions in a dialog's first message, read as JSON."""
    place = dialog[0]["content"] if "Respond in" in dialog[0]["content"] else dialog[1]["content"]
    assert place.startswith(("Given the following functions", "You have access to the following"))
    rest, tools = place.split("Do not use variables.\n\n")[1], []
    while rest.startswith("{"):
        tool, end = json.JSONDecoder().raw_decode(rest)
        tools.append(tool)
        rest = rest[end:].removeprefix("\n\n")
    return tools


def test_tools_are_called_as_they_are_defined() -> None:
    called, plain, results = Counter(), 0, Counter()
    for dialog in dialogs("tools", 800, stories=STORIES):
        functions = {tool["function"]["name"]: tool["function"] for tool in offered(dialog)}
        assert "calculator" in functions
        for index, message in enumerate(dialog):
            if message["role"] == "ipython":
                call = json.loads(dialog[index - 1]["content"])
                assert list(call) == ["name", "parameters"]
                function = functions[call["name"]]
                assert [*call["parameters"]] == function["parameters"]["required"]
                argument, output = next(iter(call["parameters"].values())), message["content"]
                if output[0] in '{"':
                    output = json.loads(output)
                    results[type(output)] += 1
                if isinstance(output, dict):
                    [output] = output.values()
                if call["name"] == "calculator":
                    assert float(output) == eval(argument)
                    numbers = re.findall(r"\d+", argument)
                    assert set(numbers) <= set(re.findall(r"\d+", dialog[index - 2]["content"]))
                else:
                    assert argument in dialog[index - 2]["content"]
                assert str(output) in dialog[index + 1]["content"]
                called[call["name"]] += 1
            elif message["role"] == "assistant" and dialog[index - 1]["role"] == "user":
                plain += not message["content"].startswith("{")
    assert len(called) == 4
    assert called["calculator"] > 500
    assert called.total() - called["calculator"] > 50
    assert plain > 200
    assert results[dict] > 50 < results[str]


def test_the_prompt_of_tools_is_metas() -> None:
    definition = {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Calculates",
            "parameters": {
                "type": "object",
                "properties": {
                    "expression": {"type": "string", "description": "What to calculate"}
                },
                "required": ["expression"],
            },
        },
    }
    assert definition == CALCULATOR
    assert json.loads(offer([CALCULATOR])) == definition
    assert offer([CALCULATOR], indent=4) == json.dumps(definition, indent=4) + "\n\n"
    user = (
        "Given the following functions, please respond with a JSON for a function call with its "
        "proper arguments that best answers the given prompt.\n\nRespond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}. '
        'Do not use variables.\n\n{"type": "function", '
    )
    template = (  # transformers', whose sentences have no space between them
        "You have access to the following functions. To call a function, please respond with JSON "
        'for a function call.Respond in the format {"name": function name, "parameters": '
        'dictionary of argument name and its value}.Do not use variables.\n\n{"type": "function", '
    )
    made = dialogs("tools", 400)
    assert sum(message["content"].startswith(user) for d in made for message in d[:2]) > 50
    assert sum(dialog[0]["content"].startswith(template) for dialog in made) > 20
    assert sum('{\n    "type"' in text(dialog[:2]) for dialog in made) > 20


def test_which_calls_are_right() -> None:
    right = calls_for("345 * 12")
    assert right('{"name": "calculator", "parameters": {"expression": "345 * 12"}}')
    assert right('{"name":"calculator","parameters":{"expression":"12*345"}}')
    for wrong in (
        '{"name": "calculator", "parameters": {"expression": "345 * 13"}}',
        '{"name": "calculate", "parameters": {"expression": "345 * 12"}}',
        '{"name": "calculator", "parameters": {"expr": "345 * 12"}}',
        '{"name": "calculator", "parameters": {"expression": "345 * 12", "digits": "2"}}',
        '{"name": "calculator", "parameters": {"expression": 4140}}',
        '{"name": "calculator", "parameters": {"expression": "345 times 12"}}',
        '{"name": "calculator", "parameters": "345 * 12"}',
        '{"name": "calculator", "arguments": {"expression": "345 * 12"}}',
        '{"name": "calculator", "parameters": {"expression": "345 * 12"}',
        'Sure: {"name": "calculator", "parameters": {"expression": "345 * 12"}}',
        "345 * 12 = 4140.",
        "[1]",
        "",
    ):
        assert not right(wrong), wrong


def test_which_sentences_have_the_result() -> None:
    right = ends_with_number("4140")
    assert right("345 * 12 = 4140.")
    assert right("It is 4140.0!")
    assert right("It is 4140, not 414 nor 41400 but 4140")
    for wrong in (
        "4140 / 2 = 2070.",
        "It is 414.",
        "It is 41400.",
        "It is -4140.",
        "It is 4140.5",
        UNKNOWN,
    ):
        assert not right(wrong), wrong


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", 14),
        (" (2+3)*4 ", 20),
        ("7 / 2", 3.5),
        ("-8 / 2 - 1", -5),
        ("1.5 * 2", 3),
    ],
)
def test_expressions_have_values(expression: str, value: float) -> None:
    assert evaluate(expression) == value
    assert type(evaluate(expression)) is type(value)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "2 +",
        "1 / 0",
        "2 ** 9",
        "abs(2)",
        "x",
        "True + 1",
        "'a'",
        "(" * 500 + "2",
        "9e999",
        "1j",
    ],
)
def test_other_expressions_are_refused(expression: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  its text may be Python's own
        evaluate(expression)


def test_examples_with_tools_end_where_they_are_measured(examples: dict) -> None:
    for example in examples["tool calls"]:
        assert example.dialog[-2]["role"] == "user"
        assert json.loads(example.dialog[-1]["content"])["name"] == "calculator"
    for example in examples["tool results"]:
        assert example.dialog[-2]["role"] == "ipython"
        assert not example.right(re.sub(r"([\d.]*\d)", r"1\1", example.dialog[-1]["content"]))
    for example in examples["tools not needed"]:
        assert example.dialog[-2]["role"] == "user"
        assert not example.right('{"name": "calculator", "parameters": {"expression": "1 + 1"}}')
    trained = [skills(seed).tool_not_needed() for seed in range(60)]
    free = [each for each in trained if each.right("Something else.")]
    assert free
    assert not any(each.right('{"name": "calculator"}') or each.right("") for each in free)
    beside = [len(offered(example.dialog)) for example in examples["tool calls"]]
    assert 30 < sum(number > 1 for number in beside) < 150


# Measuring.


def test_examples_are_right_as_they_stand_and_wrong_otherwise(examples: dict) -> None:
    for name, those in examples.items():
        for example in those:
            assert example.dialog[-1]["role"] == "assistant"
            assert example.right(example.dialog[-1]["content"])
            assert not example.right("")
            if name not in ("style", "tool calls", "tool results", "tools not needed"):
                assert not example.right(example.dialog[-1]["content"] + "!")
    missing = [example.dialog[-1]["content"] for example in examples["facts that are missing"]]
    assert {*missing} == {UNKNOWN} == {"I don't know."}
    assert not any("know" in example.dialog[-1]["content"] for example in examples["facts"])
    spelled = [example.dialog[-1]["content"].replace("-", "") for example in examples["spelling"]]
    assert spelled == [word.upper() for word in NEW_WORDS]


def test_too_few_examples_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    same = skills(held_out=True).styled()
    monkeypatch.setattr("examples.tiny_skills.measure.SCORES", {"style": lambda skills: same})
    with pytest.raises(ValueError, match="style: there are only 1 examples, not 5"):
        exam(skills(held_out=True), 5)


def test_the_score_is_the_share_of_right_answers(examples: dict) -> None:
    asked = []

    def chat_completion(dialogs, **settings) -> list:
        asked.append(settings)
        return [{"generation": {"content": answers[json.dumps(dialog)]}} for dialog in dialogs]

    answers, chosen = {}, {name: examples[name][:4] for name in ("facts", "style", "tool calls")}
    for name, those in chosen.items():
        for index, example in enumerate(those):
            wrong = index < {"facts": 1, "style": 2, "tool calls": 4}[name]
            content = "" if wrong else example.dialog[-1]["content"]
            answers[json.dumps(example.dialog[:-1])] = content
    llama = SimpleNamespace(chat_completion=chat_completion)
    assert score(llama, chosen) == {"facts": 0.75, "style": 0.5, "tool calls": 0.0}
    assert all(settings["temperature"] == 0 for settings in asked)


# Words of tokens that few words have.


def test_made_up_words_use_rare_tokens(tokenizer: Tokenizer) -> None:
    words = ["running", "jumping", "tables", "chairs", "sunshine", "raincoat", "butter", "flower"]
    held_out = ["ing", "tab"]

    def seen(words) -> Counter:
        return Counter(token for word in words for token in set(tokenizer.encode(f" {word}")))

    made = made_up_words(random.Random(1), tokenizer, words, held_out, times=3)
    assert made == made_up_words(random.Random(1), tokenizer, words, held_out, times=3)
    assert len({*made}) == len(made)
    assert all(re.fullmatch("[a-z]{2,12}", word) for word in made)
    assert not any(part in word for word in made for part in held_out)
    before, after = seen(words), seen(words + made)
    assert len(made) <= sum(max(0, 3 - times) for times in before.values())
    assert after.keys() == before.keys()
    spoiled = [token for token in before if re.search("ing|tab", tokenizer.decode([token]))]
    assert [token for token in after if after[token] < 3 and token not in spoiled] == []
    assert made_up_words(random.Random(1), tokenizer, words, held_out, times=1) == []
    assert any("ing" in word for word in made_up_words(random.Random(1), tokenizer, words, [], 3))
