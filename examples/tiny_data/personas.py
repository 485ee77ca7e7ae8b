"""Roles in a system prompt, answers in them, and a coordinator that combines experts' answers."""

import re
from dataclasses import dataclass
from functools import cache

from examples.tiny_data.turns import UNKNOWN, Source, Turn, capital, dialog_of
from examples.tiny_data.wording import choose, fill, groups, typed
from llama import Message

WHO = """[Who|What] are you?
Who am I talking to?
[Tell me|Please tell me] who you are.
[Introduce|Please introduce] yourself[.|!]
[Hello|Hi|Hey]! Who are you?
And who are you?
What is your [role|job]?
Who is [there|this]?
[I'd like to know|Can you tell me] who you are.""".splitlines()
WHAT = """What do you do?
What is your work?
What can you do[ for me|]?
What do you [do all day|do here|work on]?
How can you help me?
What are you here for?
With what can you help[ me|]?
[Tell me|Please tell me] what you do.""".splitlines()
NAME = """What is your name?
What's your name?
What are you called?
[May|Can] I ask your name?
How may I call you?""".splitlines()
BEFORE = """[Hi|Hello|Good day|Good morning]!
I have a question.
[Please help me.|Can you help me?]
[Excuse me.|Sorry to bother you.|May I ask you something?]
One more thing:
[Another question:|My question:|Quick question:]
[So|Well|Ok|And now|Hm|Um],
[I need|I'd like|I am looking for] [some |your |]advice.
[Nice to meet you|How nice that you are here|Good to see you][!|.]
[My friend|My wife|My husband|A neighbor] sent me to you.
[I hope|I hear|People say] that you can help[ me|].
[I don't know whom to ask.|Nobody else can help me.|Please be so kind.]
[Sorry, one more thing.|And something else.|By the way,]""".splitlines()
AFTER = """[Thanks!|Thank you!|Please.|Please help me.]
[What do you think|What is your advice|Any ideas|Can you help]?
[I need to know it|It is important|I have to know] [today|for tomorrow|soon].
[I am new to this.|I have no idea.|I am not sure what is right.]""".splitlines()
LEADERS = """You lead a team.
You are the coordinator.
You are a coordinator. You ask experts and combine [their answers|what they say].
You are the coordinator of a team of experts.
You lead a team of experts. Combine [their answers|what they say].
You are a coordinator. You are no expert yourself.
You are a helpful assistant.
You [put together|combine] the answers of [your|several|the] experts.""".splitlines()
# The prompts of a coordinator whose experts are named; {all} is what each said, {q} the question.
NAMED = """The experts say:\\n{all}\\n\\nQuestion: {q}\\nCombine [the answers|their answers].
Question: {q}\\n\\n{all}\\n\\n[Combine the answers.|Put the answers together.|What do they say?]
{number} experts answered [the|a] question: {q}\\n{all}\\n[Combine|Join] [the|their] answers.
{q}\\n\\n[Answers of the experts|The answers|Experts' answers]:\\n{all}
I asked {number} experts: {q}\\n{all}\\n[Sum it up|Tell me what they say|Put it together], please.
Here is what the experts said.\\n{all}\\n\\n[Please give|Give|Write] one answer to the question: {q}
[Combine these answers|Combine the answers of the experts|Put these answers together].\\n\\n{all}
{all}\\n\\n[What does each expert say?|What do the experts say?|Join them.]""".splitlines()
# What `llama.agents` asks a coordinator's model.
COMBINE = "Answer from these passages.\n\n{answers}\n\nQuestion: {question}"
CANNOT_HELP = "I can't help with that."
NUMBERS = {2: "Two", 3: "Three", 4: "Four"}
OPEN = """What do we know?
What should I do?
What do you [say|think|know]?
What is [important|to be done|the plan]?
[Can you|Please] help me[.|!]
What does the team [say|know]?
What is your [answer|advice]?
[Tell me|Please tell me] all that you know.""".splitlines()


@dataclass(frozen=True)
class Role:
    """A role with its field, what it does, and questions of its field with their answers."""

    name: str
    field: str
    duty: str
    answers: tuple[tuple[str, str], ...]

    @property
    def with_article(self) -> str:
        """ "a lawyer"."""
        return f"{'an' if self.name[0] in 'aeiouAEIOU' else 'a'} {self.name}"

    @property
    def your_duty(self) -> str:
        """What the role does, said to it."""
        words = {"I": "you", "my": "your", "me": "you", "am": "are"}
        told = re.sub(r"\b(I|my|me|am)\b", lambda match: words[match[1]], self.duty)
        return capital(told)


@cache
def roles() -> tuple[Role, ...]:
    """All roles."""
    found = []
    for head, *lines in groups("roles.txt"):
        name, field, duty = re.split(r" = |: ", head, maxsplit=2)
        answers = tuple(tuple(line.split(" > ")) for line in lines)
        found.append(Role(name, field, duty, tuple((said, reply) for said, reply in answers)))
    return tuple(found)


@cache
def _wordings() -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    prompts, rules = map(tuple, groups("personas.txt"))
    return prompts, rules, tuple(map(tuple, groups("persona_facts.txt")))


def dialog(source: Source) -> list[Message]:
    """A role and one to five questions, or a coordinator with its experts' answers."""
    kind = source.rng.random()
    if kind < 0.25:
        return combined(source)
    if kind < 0.33:  # the prompts of the team in the examples
        facts = _facts(source, source.rng.choice((2, 3, 4, 5)))
        told = " ".join(fact.answer for fact in facts if fact.answer != UNKNOWN)
        asked = source.rng.sample(facts, source.rng.choice((1, 1, 2)))
        return dialog_of(f"You are a helpful assistant. Use these facts: {told}", asked)
    return in_role(source)


def in_role(source: Source) -> list[Message]:
    """A role, its field, other fields, and facts of its prompt."""
    rng = source.rng
    role = rng.choice(roles())
    prompts, rules, _ = _wordings()
    prompt, name = choose(rng, rng.choice(prompts)), source.pick("person")
    is_named = "{name}" in prompt
    if rng.random() < 0.4:
        more = [choose(rng, rule) for rule in rng.sample(rules, rng.choice((1, 1, 2)))]
        prompt = " ".join((prompt, *more))
    prompt = (
        prompt.replace("{a}", role.with_article)
        .replace("{role}", role.name)
        .replace("{name}", name)
        .replace("{duty}", role.your_duty)
        .replace("\\n", "\n")
    )
    refuses = re.search(r"say that you can't help|[Rr]efuse", prompt) is not None
    facts = _facts(source, rng.choice((1, 2, 3, 4))) if rng.random() < 0.35 else []
    if facts:
        told = " ".join(fact.answer for fact in facts if fact.answer != UNKNOWN)
        between = rng.choice((" ", " ", "\n", " Use these facts: ", " You know this: "))
        prompt = rng.choice(
            (f"{prompt}{between}{told}", f"{prompt}{between}{told}", f"{told} {prompt}")
        )
    turns = [
        _turn(source, role, name if is_named else "", refuses) for _ in range(rng.randint(1, 3))
    ]
    turns += rng.sample(facts, min(len(facts), rng.choice((1, 2))))
    rng.shuffle(turns)
    once = {re.sub(r"\W", "", turn.question.lower()): turn for turn in turns}
    return dialog_of(prompt.strip(), once.values())


def _turn(source: Source, role: Role, name: str, refuses: bool) -> Turn:
    rng, kind = source.rng, source.rng.random()
    me = f"I am {role.with_article}."
    if kind < 0.15:
        answer = f"I am {name}, {role.with_article}." if name else f"{me} {role.duty}"
        return Turn(typed(rng, choose(rng, rng.choice(WHO))), answer, sentence=me)
    if kind < 0.25:
        return Turn(typed(rng, choose(rng, rng.choice(WHAT))), role.duty, sentence=role.duty)
    if kind < 0.32 and name:
        answer = f"My name is {name}."
        return Turn(
            typed(rng, choose(rng, rng.choice(NAME))), answer, f"{name}.", f"{name}.", answer
        )
    if kind < 0.7:
        said, reply = rng.choice(role.answers)
    else:
        while True:
            other = _other(source, role)
            said = rng.choice(other.answers)[0]
            if _has_topic(said):
                break
        helper = f"Please ask {other.with_article} about that."
        reply = f"{me} {CANNOT_HELP if refuses else helper}"
    if rng.random() < 0.25:
        before = choose(rng, rng.choice(BEFORE))
        joined = before.endswith(",") and not re.match(r"I\b|English", said)
        said = f"{before} {said[:1].lower() + said[1:] if joined else said}"
    elif rng.random() < 0.12:
        said = f"{said} {choose(rng, rng.choice(AFTER))}"
    return Turn(typed(rng, said), reply, free=True)


def _other(source: Source, role: Role) -> Role:
    """A role of another field that people do ask."""
    real = [other for other in roles() if other.field not in (role.field, *_ODD)]
    return source.rng.choice(real)


def _has_topic(question: str) -> bool:
    """Whether a question tells its field: it is not about the one who is asked, or anything."""
    words = {word.lower() for word in re.findall(r"[A-Za-z]{4,}", question)}
    return len(words - _VAGUE) >= 1 and not re.search(
        r"\b(?:you|your|I am|here|this|it)\b", question
    )


_VAGUE = frozenset(
    """what when where which should does have long often much many need start first good help with
    that they their there take from late look show tell after before talk free know right wear sit
    bring less today always table room things thing pictures find money eats""".split()
)
_ODD = ("castle", "machines", "team", "family")


def _facts(source: Source, number: int) -> list[Turn]:
    """Facts with their questions; at times also one that is not told."""
    rng, (_, _, all_facts) = source.rng, _wordings()
    turns = []
    for fact, *asks in rng.sample(all_facts, number):
        (told,) = fill(source, fact)
        turns.append(Turn(typed(rng, choose(rng, rng.choice(asks))), told, sentence=told))
    if number > 1 and rng.random() < 0.4:
        turns[0] = Turn.unknown(turns[0].question)
    return turns


def combined(source: Source) -> list[Message]:
    """A question with the answers of several experts, and what they say together."""
    rng = source.rng
    system = choose(rng, rng.choice(LEADERS)) if rng.random() < 0.7 else ""
    if rng.random() < 0.5:
        return dialog_of(system, [_numbered(source)])
    team = rng.sample(roles(), rng.choice((2, 2, 3, 3, 4)))
    if rng.random() < 0.5:
        question = choose(rng, rng.choice(OPEN))
        says = [turn.answer for turn in _facts(source, len(team))]
    else:
        question = rng.choice(team[0].answers)[0]
        says = [rng.choice(role.answers)[1] for role in team]
    texts = [f"The {role.name} says: {said}" for role, said in zip(team, says, strict=True)]
    heard = rng.choice(("The {} says: {}", "The {} says: {}", "{}: {}", "- {}: {}", "[{}] {}"))
    listed = "\n".join(
        capital(heard.format(role.name, said)) for role, said in zip(team, says, strict=True)
    )
    request = choose(rng, rng.choice(NAMED)).replace("\\n", "\n")
    request = request.replace("{number}", NUMBERS[len(team)]).replace("{q}", question)
    request = re.sub(r"(?<=asked )[A-Z]", lambda match: match[0].lower(), request)
    return dialog_of(system, [Turn(request.replace("{all}", listed), " ".join(texts))])


def _numbered(source: Source) -> Turn:
    """The prompt of `llama.agents`: who can't help is left out of the answer."""
    rng = source.rng
    kind = rng.random()
    if kind < 0.6:  # a fact that one or two of the experts know
        fact, *asks = rng.choice(_wordings()[2])
        (told,) = fill(source, fact)
        question = choose(rng, rng.choice(asks))
        known = [told]
        if rng.random() < 0.25:
            more, other = _other_fact(source, fact)
            question = f"{question} And {more[:1].lower()}{more[1:]}"
            known.append(other)
    elif kind < 0.7:
        question, known = choose(rng, rng.choice(rng.choice(_wordings()[2])[1:])), []
    else:
        role = rng.choice(roles())
        question, told = rng.choice(role.answers)
        known = [told]
    others = list[str]()
    for role in rng.sample(roles(), rng.choice((0, 1, 1, 2)) + (not known)):
        refusal = f"I am {role.with_article}. Please ask somebody else about that."
        others.append(rng.choice((UNKNOWN, UNKNOWN, refusal, "I can't help with that.")))
    answers = [*known, *others]
    rng.shuffle(answers)
    listed = "\n".join(f"[{number}] {answer}" for number, answer in enumerate(answers, 1))
    answer = " ".join(answer for answer in answers if answer in known) or UNKNOWN
    question = typed(rng, question)
    return Turn(COMBINE.replace("{answers}", listed).replace("{question}", question), answer)


def _other_fact(source: Source, first: str) -> tuple[str, str]:
    """A question for another fact than the first, and the fact."""
    while True:
        fact, *asks = source.rng.choice(_wordings()[2])
        if fact.split()[:2] != first.split()[:2]:
            return choose(source.rng, source.rng.choice(asks)), fill(source, fact)[0]
