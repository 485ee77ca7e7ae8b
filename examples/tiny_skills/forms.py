"""How everything else is put: sums, what users tell of themselves, rules of style, small talk."""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from examples.tiny_skills.facts import GROUPS, Turn, capital, forms

SPELL_REQUESTS = (
    "Spell {}.",
    "Spell the word {}.",
    "How do you spell {}?",
    "How is {} spelled?",
    'Spell "{}".',
    'How do you spell "{}"?',
    'Spell the word "{}".',
)

# Sums in words: {a} and {b} are the numbers.
SUMS = {
    "+": forms(
        "What is {a} + {b}? / {a}+{b}= / {a} + {b} / Add {a} and {b}. / What is {a} plus {b}? / "
        "How much is {a} + {b}? / Calculate {a} + {b}. / What is the sum of {a} and {b}?"
    ),
    "-": forms(
        "What is {a} - {b}? / {a}-{b}= / {a} - {b} / Subtract {b} from {a}. / "
        "What is {a} minus {b}? / How much is {a} - {b}? / Calculate {a} - {b}. / "
        "Take away {b} from {a}."
    ),
    "*": forms(
        "What is {a} * {b}? / {a}*{b}= / {a} * {b} / Multiply {a} by {b}. / "
        "What is {a} times {b}? / How much is {a} * {b}? / Calculate {a} x {b}. / "
        "What is the product of {a} and {b}?"
    ),
    "/": (
        "What is {a} / {b}?",
        "{a}/{b}=",
        "Divide {a} by {b}.",
        "What is {a} divided by {b}?",
        "How much is {a} / {b}?",
    ),
}


def _pairs(table: str) -> tuple[tuple[str, str], ...]:
    lines = table.strip().split("\n")
    return tuple(zip(lines[::2], lines[1::2], strict=True))


# Small stories about numbers of things {k}: a question and, below it, the answer {r} in a sentence.
PROBLEMS = {
    "+": _pairs("""
{n} has {a} {k}. {m} gives {n} {b} more. How many {k} does {n} have now?
{n} has {r} {k} now.
There are {a} {k} in the first box and {b} {k} in the second. How many are there?
There are {r} {k}.
{n} has {a} {k} and {m} has {b}. How many {k} do they have together?
They have {r} {k} together.
{n} found {a} {k} on Monday and {b} on Tuesday. How many {k} did {n} find?
{n} found {r} {k}.
"""),
    "-": _pairs("""
{n} has {a} {k} and gives {b} of them to {m}. How many {k} does {n} have left?
{n} has {r} {k} left.
There were {a} {k}. {n} took {b} of them. How many {k} are left?
There are {r} {k} left.
{n} needs {a} {k} and has {b}. How many more {k} does {n} need?
{n} needs {r} more {k}.
"""),
    "*": _pairs("""
There are {a} boxes with {b} {k} in each. How many {k} are there?
There are {r} {k}.
{n} buys {a} {k} for {b} dollars each. How many dollars does {n} pay?
{n} pays {r} dollars.
{n} finds {a} {k} every day. How many {k} does {n} find in {b} days?
{n} finds {r} {k}.
"""),
    "/": _pairs("""
{n} shares {a} {k} among {b} children. How many {k} does each child get?
Each child gets {r} {k}.
{n} packs {a} {k} into boxes of {b}. How many boxes are there?
There are {r} boxes.
"""),
}


@dataclass(frozen=True)
class Telling:
    """What users say about themselves, {v}, the reply, later questions for it, and their answer."""

    kind: str
    of: tuple[str, ...]
    says: tuple[str, ...]
    reply: str
    asks: tuple[str, ...]
    answer: str

    def said(self, rng: random.Random, parts: Mapping[str, str]) -> Turn:
        return Turn(rng.choice(self.says).format(**parts), capital(self.reply.format(**parts)))

    def asked(self, rng: random.Random, parts: Mapping[str, str]) -> Turn:
        return Turn(rng.choice(self.asks).format(**parts), self.answer.format(**parts))


def _tellings(table: str) -> tuple[Telling, ...]:
    tellings = []
    for block in table.strip().split("\n\n"):
        kind, says, reply, asks, answer = block.split("\n")
        kind, _, group = kind.partition(" of ")
        of = GROUPS[group] if group else ("",)
        tellings.append(Telling(kind, of, forms(says), reply, forms(asks), answer))
    return tuple(tellings)


TELLINGS = _tellings("""
person
My name is {v}. / I am {v}. / I'm {v}. / Hi, I am {v}. / Hello! My name is {v}. / Call me {v}.
Nice to meet you, {v}!
What is my name? / What's my name? / Do you remember my name? / Who am I? / Tell me my name.
Your name is {v}.

pet of pets
I have a {k} named {v}. / My {k} is called {v}. / The name of my {k} is {v}.
{v} is a nice name for a {k}.
What is my {k}'s name? / What is my {k} called? / Do you remember the name of my {k}?
Your {k}'s name is {v}.

person of friends
My {k}'s name is {v}. / My {k} is called {v}. / I have a {k} named {v}.
{v} is a nice name.
What is my {k}'s name? / What is my {k} called? / Who is my {k}?
Your {k}'s name is {v}.

town
I live in {v}. / My home is in {v}.
I hope that {v} is a nice place.
Where do I live? / Do you remember where I live?
You live in {v}.

age
I am {v} years old. / I'm {v} years old.
That is a good age.
How old am I? / What is my age?
You are {v} years old.

job
I work as {v}. / My job is to be {v}.
That must be interesting.
What is my job? / What do I work as?
You work as {v}.

food
I like to eat {v}. / My favorite food is {v}.
That sounds good.
What do I like to eat? / What is my favorite food?
You like to eat {v}.
""")


@dataclass(frozen=True)
class Rule:
    """A rule of style: how it is put, what becomes of an answer, and whether an answer obeys.

    {x} is a word of the rule's own. `apply` gives None where the rule makes no sense.
    """

    says: tuple[str, ...]
    apply: Callable[[Turn, str], str | None]
    obeyed: Callable[[Turn, str, str], bool]  # of the answer, last


def _excited(text: str) -> str:
    return re.sub(r"[.?](?=\s|$)|(?<=\w)$", "!", text)


RULES = (
    Rule(
        forms(
            "Answer in capital letters. / Use only capital letters. / Always write in upper case."
        ),
        lambda turn, x: turn.answer.upper(),
        lambda turn, x, answer: answer == answer.upper(),
    ),
    Rule(
        forms("Answer in small letters. / Use no capital letters. / Always write in lower case."),
        lambda turn, x: turn.answer.lower(),
        lambda turn, x, answer: answer == answer.lower(),
    ),
    Rule(
        forms("End every answer with '{x}.' / End each answer with {x}. / Always finish with {x}."),
        lambda turn, x: f"{turn.answer} {x}.",
        lambda turn, x, answer: answer.endswith(f" {x}."),
    ),
    Rule(
        forms(
            "Begin each answer with '{x},' / Start every answer with {x}. / "
            "The first word of each answer is {x}."
        ),
        lambda turn, x: f"{x}, {turn.answer}",
        lambda turn, x, answer: answer.startswith(f"{x}, "),
    ),
    Rule(
        forms("Put every answer in quotation marks. / Write your answers in quotes."),
        lambda turn, x: f'"{turn.answer}"',
        lambda turn, x, answer: answer[0] + answer[-1] == '""',
    ),
    Rule(
        forms(
            "Speak like a pirate: say Arrr first. / You are a pirate. Begin with Arrr! / "
            "Talk like a pirate."
        ),
        lambda turn, x: f"Arrr! {turn.answer}",
        lambda turn, x, answer: answer.startswith("Arrr! "),
    ),
    Rule(
        forms("Say everything twice. / Give each answer two times. / Repeat each answer."),
        lambda turn, x: f"{turn.answer} {turn.answer}",
        lambda turn, x, answer: answer == " ".join([answer[: len(answer) // 2]] * 2),
    ),
    Rule(
        forms("Be excited: use exclamation marks. / End every sentence with an exclamation mark."),
        lambda turn, x: _excited(turn.answer),
        lambda turn, x, answer: answer == _excited(answer) and answer.endswith("!"),
    ),
    Rule(
        forms("Repeat the question before you answer. / First say the question again."),
        lambda turn, x: f"{turn.question} {turn.answer}",
        lambda turn, x, answer: answer.startswith(f"{turn.question} "),
    ),
    Rule(
        forms("Answer in one word. / Use only one word. / Give answers of one word."),
        lambda turn, x: turn.word,
        lambda turn, x, answer: len(answer.split()) == 1,
    ),
    Rule(
        forms("Answer with at most three words. / Use no more than three words."),
        lambda turn, x: turn.few or turn.word,
        lambda turn, x, answer: len(answer.split()) <= 3,
    ),
    Rule(
        forms("Answer in a full sentence. / Write full sentences. / Use a whole sentence."),
        lambda turn, x: turn.sentence,
        lambda turn, x, answer: len(answer.split()) >= 3,
    ),
)
# Questions that have answers in one word and in few.
SHORT_TALK = (
    (forms("Hi / Hello / Hi! / Hello! / Hey / Good morning!"), "Hello!", "Hello, my friend!"),
    (forms("How are you? / How are you today? / How do you feel?"), "Fine.", "Fine, thank you."),
    (forms("Who are you? / What are you?"), "Llama.", "A tiny Llama."),
    (forms("Thank you! / Thanks! / Great, thanks."), "Welcome!", "You are welcome!"),
    (forms("I am sad. / I had a bad day. / I feel sad today."), "Sorry.", "I am sorry."),
    (forms("What can you do? / How can you help me?"), "Stories.", "Stories and spelling."),
    (forms("Bye / Goodbye! / See you later. / Good night!"), "Goodbye!", "Goodbye, my friend!"),
)

STORY_REQUESTS = (
    "Tell me a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "Write a short story.",
    "Please tell me a story for children.",
    "I would like to hear a story.",
)
STORY_REQUESTS_ABOUT = (
    "Tell me a story about {}.",
    "Tell me a short story about {}.",
    "Can you tell me a story about {}?",
    "Write a story about {}.",
    "Please write a short story about {}.",
    "I want to hear a story about {}.",
)
# What a story may be asked to be about, where it is about that.
TOPICS = """
airplane apple ball balloon bath bear bee bike bird boat book box bread bridge bug bunny bus
butterfly cake candy car castle cat chair chicken clock cloud coat cookie cow crab dinosaur doctor
dog doll dolphin dragon dress drum duck egg elephant fairy farm farmer fire fish flower fly forest
fox frog game garden ghost giraffe goat guitar hat hen hill horse house insect jar jungle key king
kite kitten lake lamp leaf lemon lion lizard map monkey monster moon mountain mouse mushroom nest
ocean octopus owl pancake panda park parrot party pen penguin phone piano picture pie pig pirate
plane pond pony princess prince puddle pumpkin puppy puzzle queen rabbit rainbow river robot rock
rocket sandwich school sea seal shark sheep shell ship shoe snail snake snow snowman soup spider
squirrel star statue stone storm swing teacher tiger toy tractor train treasure tree truck turtle
umbrella wagon whale wind window witch wizard wolf worm zebra zoo
""".split()

SMALL_TALK = (
    (
        ("Hi", "Hello", "Hi!", "Hello!", "Hey", "Hey there", "Hi there!", "Good morning!"),
        ("Hello! How can I help you?", "Hi! How are you today?", "Hello! It is nice to meet you."),
    ),
    (
        ("How are you?", "How are you today?", "How are you doing?", "How do you feel?"),
        (
            "I am fine, thank you! How are you?",
            "I am doing well, thank you for asking.",
            "I feel great today. And you?",
        ),
    ),
    (
        ("Hi! How are you?", "Hello, how are you today?", "Hey, how is it going?"),
        ("Hello! I am fine, thank you. How are you?", "Hi! I am doing well. And you?"),
    ),
    (
        ("I am fine, too.", "I'm good, thanks.", "I am fine, thank you.", "I feel great."),
        ("I am glad to hear that!", "That is good to hear. What shall we do?"),
    ),
    (
        ("I am sad.", "I feel sad today.", "I had a bad day.", "I am not feeling well."),
        (
            "I am sorry to hear that. Do you want to talk about it?",
            "Oh no, I am sorry. Maybe a story will cheer you up?",
        ),
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself."),
        (
            "I am a tiny Llama, a very small language model.",
            "I am a tiny Llama. I tell stories, chat and spell words.",
        ),
    ),
    (
        ("What can you do?", "How can you help me?", "What are you good at?", "Help"),
        (
            "I can tell you a short story, chat with you about films, music and sport, "
            "or spell a word.",
            "I can tell stories, talk a little, and spell words and count their letters.",
        ),
    ),
    (
        ("Are you a human?", "Are you real?", "Are you a robot?", "Are you an AI?"),
        ("I am not a person. I am a very small computer program that writes text.",),
    ),
    (
        ("How old are you?", "When were you born?", "Where do you live?", "Where are you from?"),
        ("I am a computer program, so I live in this computer.",),
    ),
    (
        ("Thank you!", "Thanks!", "Thank you very much.", "Great, thanks."),
        ("You are welcome!", "You're welcome! I am happy to help."),
    ),
    (
        ("I like that story.", "That was a nice story!", "What a great story.", "I love it!"),
        ("I am glad you like it!", "Thank you! I like it, too."),
    ),
    (
        ("Bye", "Goodbye!", "See you later.", "Good night!", "Bye bye!"),
        ("Goodbye! Have a nice day.", "Bye! It was nice talking to you."),
    ),
    (
        (
            "What is the capital of France?",
            "Who is the president?",
            "What is the weather like today?",
            "How do I cook rice?",
            "Write a poem in French.",
            "Explain how a computer works.",
            "What is the meaning of life?",
            "What is the square root of 81?",
            "Who wrote Hamlet?",
            "What time is it?",
            "How far away is the moon?",
            "Write a program in Python.",
            "What is the recipe of mayonnaise?",
            "Translate this into German.",
        ),
        (
            "I don't know. I am a very small model, but I can tell you a story.",
            "I am sorry, I don't know that. I am too small to know much.",
        ),
    ),
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a kind storyteller.",
    "Always answer politely.",
    "You are a tiny Llama.",
)
COUNT_REQUESTS = (
    "How many {}'s are in {}?",
    "Count the {}'s in {}.",
    "How many times does {} appear in {}?",
    "How many times does the letter {} appear in the word {}?",
)
LENGTH_REQUESTS = ("How many letters are in {}?", "How many letters does the word {} have?")
