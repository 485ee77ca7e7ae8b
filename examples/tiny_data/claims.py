"""What texts claim, how it is asked for in a user's own wording, and what the answers are."""

import re
from dataclasses import dataclass
from pathlib import Path

from examples.tiny_data.clipped import clipped
from examples.tiny_data.fillers import is_woman
from examples.tiny_data.turns import Source, Turn, capital, forms

ABOUT = forms("""
    What do you know about {s}?
    What do we know about {s}?
    What is said about {s}?
    What does it say about {s}?
    What does the text say about {s}?
    What is known about {s}?
    What can you tell me about {s}?
    What do you have on {s}?
    Tell me about {s}.
    Tell me everything about {s}.
    Tell me all you know about {s}.
    Can you tell me something about {s}?
    Say what you know about {s}.
    Give me all facts about {s}.
    List everything that is said about {s}.
    Everything about {s}, please.
    I want to know all about {s}.
    Anything about {s}?
""")
ORDERS = forms("""
    can you tell me
    could you tell me
    can you please tell me
    could you please tell me
    can you say
    can you find out
    could you find out for me
    do you know
    do you happen to know
    would you know
    do you remember
    please tell me
    tell me
    just tell me
    say
    let me know
    find out
    find
    I'd like to know
    I would like to know
    I want to know
    I need to know
    I wonder
    I was wondering
    I forgot
    I'd love to know
    I'm trying to find out
    we want to know
    my boss wants to know
    my mother asks
    remind me
    any idea
    does it say
    does the text say
    is it known
    is there anything about
""")
BEFORE = forms("""
    please,
    hey,
    hi,
    hello,
    hello!
    hi!
    hey there,
    ok,
    okay,
    so,
    well,
    um,
    and
    now,
    quick question:
    one question:
    another question:
    next question:
    question:
    just a quick one:
    sorry,
    excuse me,
    thanks.
    thanks!
    tell me:
    please tell me:
    can you tell me:
    could you tell me:
    I'd like to know:
    say,
    good morning,
    by the way,
    according to the text,
    from the text:
    in the text,
    one more thing:
    I'm curious:
    help me:
    please help:
    I need this for school:
    my question is:
    my friend asks:
    look it up:
""")
AFTER = forms("""
    Please.
    Please!
    Thanks!
    Thanks.
    Thank you.
    Thank you!
    Thanks a lot!
    Thanks in advance!
    Please tell me.
    Can you tell me?
    Do you know?
    Do you know that?
    Any idea?
    I forgot.
    I can't find it.
    I can't remember.
    I need to know.
    I want to write it down.
    It's for school.
    It's important.
    I'm just curious.
    Quick answer please.
    Tell me, please.
    I'm not sure.
    Someone asked me.
    My friend asked me.
    Let me know.
    Look it up, please.
    What does the text say?
""")
TRUE = forms("""
    Is it true that {c}?
    Is it right that {c}?
    Is it correct that {c}?
    Does the text say that {c}?
    Would you say that {c}?
    Am I right that {c}?
    Can it be that {c}?
    {C}, right?
    {C}, is that right?
    {C}, is that true?
    {C}, isn't that so?
    {C}, or not?
    {C}. Is that right?
    {C}. True?
    {C}. Yes or no?
    Yes or no: {c}?
    True or not: {c}?
    So {c}?
    I think that {c}. Is that true?
    Someone said that {c}. Is that true?
""")
SYNONYMS = (
    ("Where is ", "Where's "),
    ("What is ", "What's "),
    ("Who is ", "Who's "),
    ("When is ", "When's "),
    ("What time ", "At what time "),
    ("At what time ", "What time "),
    ("Which ", "What "),
    ("In which ", "In what "),
    (" job?", " profession?"),
    (" like to eat?", " enjoy eating?"),
    ("How many ", "What number of "),
)
_STAY = {"is", "was", "has", "does", "always", "sometimes", "as", "us", "this", "its"}
_WH = r"((?:(?:At|In|On|From|To|By|With|For) )?(?:Where|When|Why|How|What|Which|Who)\b[^{}]*?)"
_DOES = re.compile(_WH + r" does \{s\} (\w+)\b(.*)\?")
_BE = re.compile(_WH + r" (is|was|are|were) ((?:the [\w ]+ )?\{s\}(?:'s [\w ]+)?)\?")
_WHO = re.compile(r"(Who|What|Which \w+) (?!(is|are|was|were|do|does|did|has|can|will)\b)[^{}]+\?")
_AUX = re.compile(r" (do|does|did|can|will|would|do I) ")
_AFTER_BE = {"called", "named", "like", "for", "worth", "about", "born", "in", "at", "from", "made"}


@dataclass(frozen=True)
class Claim:
    """What a text says: a value of a subject, in a clause that names both.

    asks   questions for the value, with {s} for the subject: what two claims have in common
    who    questions for the subject
    kind   of filler that the value is
    only   whether no other value can be right: then "no" answers a question for another one
    """

    subject: str
    value: str
    clause: str
    asks: tuple[str, ...]
    who: tuple[str, ...] = ()
    person: bool = False
    only: bool = False
    kind: str = ""

    def turn(self, question: str, answer: str | None = None) -> Turn:
        """The question, and the value (or what is given) as its answer."""
        short = capital(self.value if answer is None else answer).rstrip(".!?") + "."
        few = short if len(short.split()) <= 3 else None
        return Turn(question, self.clause, one_word(short), few, self.clause)


@dataclass(frozen=True)
class Text:
    """Passages, what they claim, and questions that they leave open: forms with their subjects."""

    passages: list[str]
    claims: list[Claim]
    missing: list[tuple[str, str]]
    is_laid_out: bool = False  # then passages keep their order and get no marks

    def __str__(self) -> str:
        return "\n\n".join(self.passages)


def unused(source: Source, kind: str, text: str) -> str | None:
    """A filler that does not occur in a text; None where there may be none."""
    for _ in range(20):
        filler = source.pick(kind)
        if filler.lower() not in text.lower():
            return filler
    return None


def closed(sentence: str) -> str:
    """The sentence, with one dot after "p.m."."""
    return re.sub(r"\b([ap]\.m\.)\.", r"\1", sentence)


def one_word(answer: str) -> str | None:
    """An answer without its article, where that is one word."""
    bare = re.sub(r"^(A|An|The|By) ", "", answer)
    return None if " " in bare else capital(bare)


def she_or_he(name: str) -> str:
    """What may stand for a person, always the same for a name."""
    woman = is_woman(name)
    return "she" if (name.endswith(("a", "e", "i")) if woman is None else woman) else "he"


def without_s(verb: str) -> str | None:
    """What stands after "does": "live" for "lives"; None where it isn't clear."""
    if verb == "has":
        return "have"
    if verb in _STAY or not re.fullmatch(r"[a-z]+[^su]s", verb):
        return None
    if verb.endswith("ies") and len(verb) > 4:
        return verb[:-3] + "y"
    return verb[:-2] if re.search(r"(o|ch|sh|ss|x|zz)es$", verb) else verb[:-1]


def with_s(verb: str) -> str:
    """The verb of "he" and "she"."""
    if verb in ("have", "be"):
        return {"have": "has", "be": "is"}[verb]
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(o|ch|sh|ss|x|zz)$", verb) else "s")


def asked(source: Source, form: str, subject: str, pronoun: str = "") -> str:
    """A question in some user's wording; with a pronoun for the subject if one is given."""
    rng = source.rng
    kind = rng.random()
    if kind < 0.14:
        form = _indirect(source, form)
    elif kind < 0.22 and not pronoun:
        form = clipped(rng, form)
    elif kind < 0.33:
        before, after = rng.choice(SYNONYMS)
        form = form.replace(before, after)
        for before, after in SYNONYMS[:4]:
            if rng.random() < 0.3:
                form = form.replace(before, after)
    if pronoun:
        form = with_pronoun(form, pronoun) or form
    question = capital(form.replace("{s}", subject))
    if rng.random() < 0.12:
        before = rng.choice(BEFORE)
        after = question if before[-1] in ".!" else lowered(question, form)
        question = f"{capital(before)} {after}"
    if rng.random() < 0.06:
        question += " " + rng.choice(AFTER)
    return noisy(source, closed(question), subject)


def lowered(question: str, form: str = "") -> str:
    """The question inside a sentence."""
    if form.startswith("{s}") or re.match(r"(I|I'\w+|[A-Z]{2}\w*)\b", question):
        return question
    return question[:1].lower() + question[1:]


def _indirect(source: Source, form: str) -> str:
    """ "Could you tell me where {s} lives?" of "Where does {s} live?"."""
    order = source.rng.choice(ORDERS)
    if (found := _DOES.fullmatch(form)) and found[2] not in (
        "no",
        "not",
        "usually",
        "always",
        "ever",
    ):
        inner = f"{found[1]} {{s}} {with_s(found[2])}{found[3]}"
    elif (found := _BE.fullmatch(form)) and found[3].split()[-1] not in _AFTER_BE:
        inner = f"{found[1]} {found[3]} {found[2]}"
    elif _WHO.fullmatch(form) and not _AUX.search(form):
        inner = form[:-1]
    else:
        return form
    is_question = re.match(r"(can|could|do|does|would|any|is)\b", order)
    return f"{capital(order)} {inner[:1].lower()}{inner[1:]}{'?' if is_question else '.'}"


def with_pronoun(form: str, pronoun: str) -> str | None:
    """The question with a pronoun for its subject; None where it would not be clear."""
    own, object_ = {"she": ("her", "her"), "he": ("his", "him"), "it": ("its", "it")}[pronoun]
    if form.count("{s}") != 1:
        return None
    if "{s}'s" in form:
        return form.replace("{s}'s", own)
    if re.search(
        r"\b(of|for|with|to|at|about|from|near|by|on|in|call|reach|belong to) \{s\}", form
    ):
        return form.replace("{s}", object_)
    if re.search(r"\b(does|did|is|was|has|can|will|do|where|when|what|how|old|who) \{s\}", form):
        return form.replace("{s}", pronoun)
    return None


def noisy(source: Source, question: str, kept: str = "") -> str:
    """As it is typed in a hurry, now and then; what is to be copied keeps its letters."""
    rng = source.rng
    kind = rng.random()
    if kind < 0.80:
        return question
    if kind < 0.86:
        return (
            question[:1].lower() + question[1:]
            if not question.startswith(kept or "?")
            else question
        )
    if kind < 0.90:
        return question.rstrip("?.! ")
    if kind < 0.94:
        return question.lower().rstrip("?.! ")
    if kind < 0.955:
        return question.replace("'s ", "s ", 1).replace("'d ", "d ")
    if kind < 0.965:
        return question.rstrip(".") + rng.choice(("?", "??", " ?", "!", " :)", "..."))
    if kind < 0.975:
        return question.upper()
    words = question.split(" ")
    spots = [
        i for i, word in enumerate(words) if word.isalpha() and word.islower() and len(word) > 3
    ]
    if not spots:
        return question
    spot = rng.choice(spots)
    if f" {words[spot]} " in f" {kept} ":
        return question
    word, i = words[spot], rng.randrange(1, len(words[spot]) - 1)
    words[spot] = rng.choice(
        (
            word[:i] + word[i] + word[i:],
            word[:i] + word[i + 1 :],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        )
    )
    return " ".join(words)


def sections(name: str) -> dict[str, tuple[str, ...]]:
    """A file beside this one: what stands below each heading "= name". Its first line tells."""
    found: dict[str, list[str]] = {"": []}
    heading = ""
    for line in (Path(__file__).parent / name).read_text().splitlines()[1:]:
        if line.startswith("= "):
            heading = line[2:]
            found[heading] = []
        elif line:
            found[heading].append(line.replace("\\n", "\n"))
    return {heading: tuple(lines) for heading, lines in found.items()}
