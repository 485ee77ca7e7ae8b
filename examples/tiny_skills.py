"""What the bundled model learns besides stories: dialogs made by a seeded generator.

    skills = Skills(random.Random(1), words, SMALL_TALK, stories)
    skills.facts()   # a list of messages, such as these two
    user: "Corvan lives in Oakport. Mia lives in Rome. Where is Mia's home?"
    assistant: "Rome."

Answering from facts in the context, short arithmetic, following a rule of the system prompt,
keeping a name through other talk, calling a calculator, and spelling. All that the assistant says
is to be learned, in each turn, as `dialog_document` does. Where an answer has one right form it
always has this one: a fact is its bare value, a sum is "34 + 28 = 62.", and what cannot be known
is "I don't know."

What is measured was never seen: one in ten names, towns, numbers, pairs of numbers, ... is kept
out of training (see `is_held_out`). The same code makes examples of those only, with
`held_out=True`: `exam` collects them and `score` marks a model's answers.
"""

import ast
import json
import operator
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from llama import Llama, Message, Tokenizer

UNKNOWN = "I don't know."
HELD_OUT_EVERY = 10
# Kinds of fillers of which there are too few to keep some out.
SHARED = ("color", "day", "hobby", "instrument", "language", "transport")


def is_held_out(text: str) -> bool:
    """Whether a name, a number, a pair of numbers, ... is kept for measuring.

    Its checksum decides, so that it stays on its side whatever list it comes from.
    """
    return zlib.crc32(text.encode()) % HELD_OUT_EVERY == 0


def is_held_out_pair(a: int | float, b: int | float) -> bool:
    """The same of two numbers in any order. Sums with a one-digit number are all trained."""
    return min(a, b) >= 10 and is_held_out(f"{min(a, b)} {max(a, b)}")


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


GIRLS = tuple(
    """Abby Alice Amelia Amy Anna Bella Betty Carla Chloe Clara Daisy Dora Ella Emily Emma Eva
    Fiona Flora Gina Grace Hanna Helen Ida Irene Ivy Jane Jenny Julia Kate Kim Laura Lena Lily Lisa
    Lola Lucy Maria Mary Mia Molly Nina Nora Olga Olivia Paula Penny Rita Rosa Ruth Sally Sara Sofia
    Sue Tina Vera Wendy Zoe""".split()
)
BOYS = tuple(
    """Adam Andy Anton Ben Bill Bob Carl Charlie Chris Dan David Eric Felix Frank Fred George Greg
    Hank Harry Henry Hugo Ivan Jack Jake Jim Joe John Karl Leo Luke Marco Mark Max Mike Nick Noah
    Oliver Oscar Otto Paul Pedro Peter Ralph Ray Rob Roger Sam Simon Steve Ted Tim Toby Tom Victor
    Walter Will Zack""".split()
)
PETS = tuple(
    """Bingo Bobo Buddy Bubbles Coco Cookie Ducky Fluffy Ginger Goldie Hopper Kitty Lucky Luna Milo
    Mittens Momo Nemo Patch Pepper Pip Poppy Rex Rocky Rusty Shadow Smoky Snowy Spot Sunny Tiger
    Tweety Waggy Whiskers Ziggy""".split()
)
TOWNS = _list(
    """Athens, Berlin, Boston, Bristol, Cairo, Chicago, Dallas, Delhi, Denver, Dublin, Florence,
    Geneva, Genoa, Hamburg, Havana, Hong Kong, Istanbul, Kyoto, Lagos, Leeds, Lima, Lisbon, London,
    Lyon, Madrid, Manila, Miami, Milan, Moscow, Munich, Nairobi, Naples, New York, Oslo,
    Oxford, Paris, Perth, Porto, Prague, Quebec, Riga, Rome, Salzburg, San Diego, Santiago, Seattle,
    Seoul, Sofia, Sydney, Tokyo, Toronto, Tunis, Turin, Venice, Vienna, Warsaw, York, Zurich"""
)
MADE_UP = (
    """Al Bar Bel Bran Cal Cor Dal Dar Del El Fal Fen Gal Gor Hal Jor Kal Kel Lor Mal Mar Mel Mor
    Nal Nor Or Pal Per Ral Ron Sel Tal Tor Ul Val Ver Wil Yor Zan Zor""".split(),
    "b d f g k l m n s t v".split(),
    "a ia ina ella ora ita o an in ik us on or ent".split(),
    "ora ania esk ino una opol".split(),
)
TOWN_PARTS = (
    """Ash Black Bridge Clear Deep East Elm Fair Green High King Lake Long Mill North Oak Queen Red
    River Sand Silver South Stone West White Wind""".split(),
    "bury burg dale field ford haven port ton ville wood".split(),
)
COLORS = """black blue brown golden gray green orange pink purple red silver turquoise violet white
yellow""".split()
THINGS = """bag basket bell bike blanket book bottle bowl box brush bucket camera candle cap chair
clock coat cup drum guitar hammer hat jar kettle key kite knife ladder lamp letter map mirror mug
pan pen pillow plate radio ring rope scarf shirt spoon table tent towel toy vase wallet""".split()
COUNTED = """apples balls balloons bananas beans books bottles boxes buttons cakes candies cards
carrots chairs coins cookies cups eggs flowers grapes hats keys lemons letters marbles nuts oranges
peaches pears pencils pens pictures plates plums potatoes rocks shells spoons stamps stars stickers
stones tickets tomatoes toys""".split()
FOODS = _list(
    """apple pie, bananas, bean soup, bread, burgers, carrots, cheese, cherries, chicken, chocolate,
    cookies, corn, eggs, fish, grapes, honey, ice cream, lemon cake, mushrooms, noodles, nuts,
    oranges, pancakes, pasta, peaches, pears, peas, pizza, plums, popcorn, potatoes, rice, salad,
    sandwiches, strawberries, tomato soup, waffles, yogurt"""
)
JOBS = _list(
    """a baker, a barber, a builder, a bus driver, a clown, a cook, a dancer, a dentist, a doctor,
    a farmer, a firefighter, a fisherman, a gardener, a hunter, a judge, a lawyer, a mechanic,
    a miner, a nurse, a painter, a pilot, a plumber, a police officer, a poet, a programmer,
    a sailor, a scientist, a shoemaker, a singer, a soldier, a tailor, a teacher, a vet, a waiter,
    a writer, an actor, an artist, an author, an engineer"""
)
ANIMALS = _list(
    """a bear, a bird, a bunny, a cat, a cow, a dog, a donkey, a duck, a fish, a fox, a frog,
    a goat, a hamster, a hen, a horse, a lizard, a monkey, a mouse, a parrot, a pig, a pony,
    a rabbit, a sheep, a snake, a spider, a squirrel, a swan, a turtle, an elephant, an owl"""
)
HOBBIES = """baking camping chess cooking cycling dancing drawing fishing gardening hiking jogging
knitting painting photography pottery reading rowing running sailing sewing singing skating skiing
surfing swimming tennis walking writing yoga""".split()
INSTRUMENTS = """banjo cello clarinet drums flute guitar harp horn organ piano saxophone trombone
trumpet tuba ukulele viola violin xylophone""".split()
LANGUAGES = """Arabic Chinese Czech Danish Dutch English Finnish French German Greek Hindi Hungarian
Italian Japanese Korean Latin Norwegian Persian Polish Portuguese Russian Spanish Swahili Swedish
Thai Turkish Welsh""".split()
SPOTS = _list(
    """behind the barn, behind the curtain, behind the door, behind the sofa, beside the lamp,
    by the window, in the attic, in the bathroom, in the car, in the cellar, in the closet,
    in the drawer, in the garage, in the garden, in the hall, in the kitchen, in the tree,
    near the fence, next to the oven, next to the stairs, on the balcony, on the chair,
    on the desk, on the roof, on the shelf, on the table, under the bed, under the bench,
    under the bridge, under the rug"""
)
TRANSPORT = _list(
    "by bike, by boat, by bus, by car, by ferry, by plane, by taxi, by train, by tram"
)
SHOPS = _list(
    """bakery, bank, bookshop, cafe, cinema, flower shop, gallery, gym, hotel, library, market,
    museum, pharmacy, pool, post office, restaurant, supermarket, theater, toy store, zoo"""
)
MONTHS = """January February March April May June July August September October November
December""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
EXCLAMATIONS = """Amen Aye Boom Bravo Captain Cheers Done Dude End Friend Hooray Indeed Listen Look
Madam Master Okay Over Please Quack Right Sir Stop Sure True Well Wow Yes Yippee""".split()


def _number(rng: random.Random) -> str:
    return str(rng.randint(*rng.choice(((2, 20), (21, 99), (100, 999), (1000, 9999)))))


def _made_up(rng: random.Random) -> str:
    start, middle, end, _ = MADE_UP
    return rng.choice(start) + rng.choice(middle) + rng.choice(end)


def _town(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(TOWNS)
    if rng.random() < 0.5:
        return "".join(map(rng.choice, TOWN_PARTS))
    return rng.choice(MADE_UP[0]) + rng.choice(MADE_UP[1]) + rng.choice(MADE_UP[3])


FILLERS: dict[str, Callable[[random.Random], str]] = {
    "age": lambda rng: str(rng.randint(2, 99)),
    "animal": lambda rng: rng.choice(ANIMALS),
    "book": lambda rng: f'"The {rng.choice(COLORS).title()} {rng.choice(THINGS).title()}"',
    "color": lambda rng: rng.choice(COLORS),
    "date": lambda rng: f"{rng.choice(MONTHS)} {rng.randint(1, 30)}",
    "day": lambda rng: rng.choice(DAYS),
    "event": lambda rng: (
        f"the {rng.choice('art book garden music school street summer winter'.split())} "
        f"{rng.choice('concert fair market meeting party race show'.split())}"
    ),
    "exclamation": lambda rng: rng.choice(EXCLAMATIONS),
    "food": lambda rng: rng.choice(FOODS),
    "hobby": lambda rng: rng.choice(HOBBIES),
    "instrument": lambda rng: f"the {rng.choice(INSTRUMENTS)}",
    "job": lambda rng: rng.choice(JOBS),
    "language": lambda rng: rng.choice(LANGUAGES),
    "length": lambda rng: f"{_number(rng)} {rng.choice(('miles', 'feet', 'meters'))}",
    "minutes": lambda rng: f"{rng.randint(2, 90)} {rng.choice(('minutes', 'hours'))}",
    "number": _number,
    "person": lambda rng: _made_up(rng) if rng.random() < 0.5 else rng.choice(GIRLS + BOYS),
    "pet": lambda rng: _made_up(rng) if rng.random() < 0.3 else rng.choice(PETS),
    "phone": lambda rng: f"{rng.randint(100, 999)}-{rng.randint(100, 999)}",
    "price": lambda rng: f"{_number(rng)} dollars",
    "shop": lambda rng: f"the {rng.choice('big new old red small'.split())} {rng.choice(SHOPS)}",
    "spot": lambda rng: rng.choice(SPOTS),
    "thing": lambda rng: f"the {rng.choice(COLORS)} {rng.choice(THINGS)}",
    "a thing": lambda rng: f"a {rng.choice(COLORS[:4])} {rng.choice(THINGS)}",
    "time": lambda rng: f"{rng.randint(1, 12)}:{5 * rng.randint(0, 11):02}",
    "town": _town,
    "train": lambda rng: f"the {rng.choice(('bus', 'train', 'boat'))} to {_town(rng)}",
    "transport": lambda rng: rng.choice(TRANSPORT),
    "year": lambda rng: str(rng.randint(1700, 2024)),
}


@dataclass(frozen=True)
class Turn:
    """A question and its answer, also in one word, in few, and in a full sentence, if there is."""

    question: str
    answer: str
    word: str | None = None
    few: str | None = None  # words, three at most
    sentence: str | None = None
    free: bool = False  # other answers are as good

    @staticmethod
    def unknown(question: str) -> "Turn":
        return Turn(question, UNKNOWN, "Unknown.", UNKNOWN, UNKNOWN)


@dataclass(frozen=True)
class Relation:
    """What can be said of a subject {s}: a value {v} of some kind, and the questions for it.

    {k} is one of `of`, each of which makes a relation of its own. `who` asks for the subject.
    """

    subject: str
    kind: str
    of: tuple[str, ...]
    says: tuple[str, ...]  # the first is the answer in a full sentence
    asks: tuple[str, ...]
    who: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A value of a relation; `of` stands for the relation's {k}."""

    relation: Relation
    subject: str
    of: str
    value: str

    @property
    def key(self) -> tuple[str, Relation, str]:
        """What no two facts of a text share."""
        return self.subject, self.relation, self.of

    @property
    def pronoun(self) -> str:
        """What may stand for the subject."""
        if self.relation.subject != "person":
            return "It"
        she = self.subject in GIRLS or (self.subject not in BOYS and self.subject.endswith("a"))
        return "She" if she else "He"

    def said(self, rng: random.Random, pronoun: str = "") -> str:
        """In a sentence, with the pronoun for the subject if the sentence begins with that."""
        form = rng.choice(self.relation.says)
        if pronoun and form.startswith("{s}"):
            own = {"He": "His", "She": "Her", "It": "Its"}[pronoun]
            form = re.sub(r"^\{s\}('s)?", lambda match: own if match[1] else pronoun, form)
        return self._filled(form)

    def asked(self, rng: random.Random) -> Turn:
        return self._turn(rng.choice(self.relation.asks), self.value)

    def asked_who(self, rng: random.Random) -> Turn:
        return self._turn(rng.choice(self.relation.who), self.subject)

    def _turn(self, form: str, answer: str) -> Turn:
        answer = f"{_capital(answer)}."
        word, sentence = _one_word(answer), self._filled(self.relation.says[0])
        few = answer if len(answer.split()) <= 3 else None
        return Turn(self._filled(form), answer, word, few, sentence)

    def _filled(self, form: str) -> str:
        return _capital(form.format(s=self.subject, k=self.of, v=self.value))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _one_word(answer: str) -> str | None:
    bare = re.sub(r"^(A|An|The|By) ", "", answer)
    return None if " " in bare else _capital(bare)


def _forms(line: str) -> tuple[str, ...]:
    return tuple(line.split(" / ")) if line else ()


def _relations(table: str) -> tuple[Relation, ...]:
    relations = []
    for block in table.strip().split("\n\n"):
        title, says, asks, *who = block.split("\n")
        subject, kind = title.split(": ")
        kind, _, group = kind.partition(" of ")
        of = GROUPS[group] if group else ("",)
        forms = _forms(says), _forms(asks), _forms("".join(who))
        relations.append(Relation(subject, kind, of, *forms))
    return tuple(relations)


GROUPS = {
    "relatives": _list("best friend, boss, classmate, coach, cousin, neighbor, partner, roommate"),
    "pets": ("bird", "cat", "dog", "horse", "rabbit"),
    "friends": ("brother", "cousin", "father", "friend", "mother", "neighbor", "sister"),
    "counted": tuple(COUNTED),
}
RELATIONS = _relations("""
person: town
{s} lives in {v}. / {s} has a house in {v}. / {s}'s home is in {v}.
Where does {s} live? / In which town does {s} live? / Where is {s}'s home?
Who lives in {v}?

person: town
{s} was born in {v}. / {s}'s place of birth is {v}.
Where was {s} born? / In which town was {s} born?
Who was born in {v}?

person: town
{s} went to {v} last summer. / Last summer {s} was in {v}.
Where did {s} go last summer? / Where was {s} last summer?
Who went to {v} last summer?

person: age
{s} is {v} years old. / {s}'s age is {v}.
How old is {s}? / What is {s}'s age?
Who is {v} years old?

person: job
{s} is {v}. / {s} works as {v}.
What is {s}'s job? / What does {s} work as?
Who is {v}? / Who works as {v}?

person: color
{s}'s favorite color is {v}. / The color that {s} likes best is {v}.
What is {s}'s favorite color? / Which color does {s} like best?

person: food
{s} likes to eat {v}. / {s}'s favorite food is {v}. / {s} loves {v}.
What does {s} like to eat? / What is {s}'s favorite food?
Who likes to eat {v}?

person: pet of pets
{s}'s {k} is called {v}. / {s} has a {k} named {v}. / {s} has a {k} called {v}.
What is {s}'s {k} called? / What is the name of {s}'s {k}?
Who has a {k} named {v}?

person: person of relatives
{s}'s {k} is {v}. / The {k} of {s} is {v}. / {s}'s {k} is called {v}.
Who is {s}'s {k}? / What is the name of {s}'s {k}?

person: phone
{s}'s phone number is {v}. / You can call {s} at {v}.
What is {s}'s phone number? / What is the phone number of {s}?

person: instrument
{s} plays {v}. / {s} can play {v}.
What does {s} play? / Which instrument does {s} play?
Who plays {v}?

person: hobby
{s}'s hobby is {v}. / The hobby of {s} is {v}.
What is {s}'s hobby? / What is the hobby of {s}?

person: number of counted
{s} has {v} {k}. / {s} owns {v} {k}.
How many {k} does {s} have? / How many {k} does {s} own?

person: a thing
{s} bought {v}. / {s} went out and bought {v}.
What did {s} buy?
Who bought {v}?

person: date
{s}'s birthday is on {v}. / {s} has a birthday on {v}.
When is {s}'s birthday? / When does {s} have a birthday?

person: time
{s} gets up at {v}. / {s} wakes up at {v}.
When does {s} get up? / What time does {s} get up?

person: language
{s} speaks {v}. / The language that {s} speaks is {v}.
Which language does {s} speak? / What language does {s} speak?
Who speaks {v}?

person: transport
{s} goes to work {v}. / {s} travels to work {v}.
How does {s} go to work? / How does {s} travel to work?

person: number
{s} sleeps in room {v}. / {s}'s room has the number {v}.
Which room does {s} sleep in? / What is the number of {s}'s room?
Who sleeps in room {v}?

town: number
{v} people live in {s}. / {s} has {v} people.
How many people live in {s}? / How many people does {s} have?

town: person
The mayor of {s} is {v}. / {s}'s mayor is {v}.
Who is the mayor of {s}? / Who is {s}'s mayor?
Which town has the mayor {v}?

town: year
{s} was founded in {v}.
When was {s} founded?

town: food
{s} is famous for its {v}. / People come to {s} for the {v}.
What is {s} famous for?

town: length
{s} is {v} from the sea.
How far is {s} from the sea?

thing: spot
{s} is {v}. / {s} lies {v}.
Where is {s}? / Where can I find {s}?

thing: person
{s} belongs to {v}. / The owner of {s} is {v}. / {v} owns {s}.
Who owns {s}? / Who is the owner of {s}?
What belongs to {v}?

thing: price
{s} costs {v}. / The price of {s} is {v}.
How much does {s} cost? / What is the price of {s}?

thing: year
{s} was made in {v}.
When was {s} made?

shop: time
{s} opens at {v}.
When does {s} open? / What time does {s} open?

shop: time
{s} closes at {v}.
When does {s} close? / What time does {s} close?

shop: day
{s} is closed on {v}.
On which day is {s} closed?

shop: person
{s} is run by {v}. / {v} runs {s}.
Who runs {s}?

event: time
{s} starts at {v}. / {s} begins at {v}.
When does {s} start?

event: date
{s} is on {v}.
On which date is {s}? / What is the date of {s}?

event: town
{s} takes place in {v}. / {s} is held in {v}.
Where is {s} held?

event: price
A ticket for {s} costs {v}.
How much is a ticket for {s}?

train: time
{s} leaves at {v}.
When does {s} leave? / What time does {s} leave?

train: minutes
{s} takes {v}.
How long does {s} take?

train: price
{s} costs {v}.
How much does {s} cost?

train: number
{s} has the number {v}.
Which number does {s} have?

book: person
{s} was written by {v}. / {v} wrote {s}. / The author of {s} is {v}.
Who wrote {s}? / Who is the author of {s}?
Which book did {v} write?

book: number
{s} has {v} pages.
How many pages does {s} have?

book: year
{s} came out in {v}.
When did {s} come out?

pet: animal
{s} is {v}.
What is {s}? / What kind of animal is {s}?

pet: food
{s} eats {v}. / {s} is fed with {v}.
What does {s} eat?

pet: spot
{s} sleeps {v}.
Where does {s} sleep?
Who sleeps {v}?

pet: person
{s} belongs to {v}.
Who does {s} belong to?
""")
SUBJECTS = ("person",) * 6 + ("town", "thing") * 2 + ("shop", "event", "train", "book", "pet")
ASIDES = _list(
    """It was a warm day., The sun was shining., Nobody was in a hurry., It rained in the morning.,
    That is well known., The birds were singing., Everybody likes that., The year was a good one.,
    The wind was cold., There is not much more to say., It happened a long time ago.,
    The street was quiet., Dinner was late., The moon was bright., Many people say so.,
    Spring came early., The door was open., Some of this is new., The garden is full of flowers."""
)

SYSTEM_LAYOUTS = (
    "{c}",
    "Facts:\n{c}",
    "Context:\n{c}",
    "Here are some facts:\n{c}",
    "You are a helpful assistant. Use these facts: {c}",
    "Answer from these passages.\n\n{c}",
    "Answer from the text. If the answer is not there, say that you don't know.\n\n{c}",
)
# Between passages, and before each.
JOINTS = (
    (" ", ""),
    ("\n", ""),
    ("\n\n", ""),
    ("\n", "- "),
    ("\n", "{n}. "),
    ("\n", "[{n}] "),
    ("\n\n", "[{n}] "),
)
USER_LAYOUTS = (
    "{c}\n\n{q}",
    "{c}\n{q}",
    "{c} {q}",
    "{q}\n\n{c}",
    "Context:\n{c}\n\nQuestion: {q}",
    "Context: {c}\nQuestion: {q}",
    "Question: {q}\n\nContext:\n{c}",
    "Facts:\n{c}\n\nQuestion: {q}",
    "Here are some facts: {c}\n\n{q}",
    "Here are some facts:\n{c}\n\n{q}",
    "Read this text and answer the question.\n\n{c}\n\n{q}",
    "Answer from these passages.\n\n{c}\n\nQuestion: {q}",
    "Use only the passages below.\n\n{c}\n\n{q}",
)
TOLD_LAYOUTS = ("{c}", "Please remember this: {c}", "Remember these facts:\n{c}")
TOLD_REPLY = "I will remember that."

NAMED = re.compile(r"\b(?:a|an) (?:[a-z]+ ){0,3}?([a-z]+) (?:named|called) ([A-Z][a-z]+)\b")
NAMED_NOUNS = "bear bird boy cat dog duck fish frog girl lion monkey".split()
NAMED_ASKS = ("What is the name of the {}?", "What is the {}'s name?", "What is the {} called?")

STORY_REQUESTS = ("Tell me a story.", "Tell me a short story.", "Can you tell me a story?")
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
    "+": _forms(
        "What is {a} + {b}? / {a}+{b}= / {a} + {b} / Add {a} and {b}. / What is {a} plus {b}? / "
        "How much is {a} + {b}? / Calculate {a} + {b}. / What is the sum of {a} and {b}?"
    ),
    "-": _forms(
        "What is {a} - {b}? / {a}-{b}= / {a} - {b} / Subtract {b} from {a}. / "
        "What is {a} minus {b}? / How much is {a} - {b}? / Calculate {a} - {b}. / "
        "Take away {b} from {a}."
    ),
    "*": _forms(
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
        return Turn(rng.choice(self.says).format(**parts), _capital(self.reply.format(**parts)))

    def asked(self, rng: random.Random, parts: Mapping[str, str]) -> Turn:
        return Turn(rng.choice(self.asks).format(**parts), self.answer.format(**parts))


def _tellings(table: str) -> tuple[Telling, ...]:
    tellings = []
    for block in table.strip().split("\n\n"):
        kind, says, reply, asks, answer = block.split("\n")
        kind, _, group = kind.partition(" of ")
        of = GROUPS[group] if group else ("",)
        tellings.append(Telling(kind, of, _forms(says), reply, _forms(asks), answer))
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
        _forms(
            "Answer in capital letters. / Use only capital letters. / Always write in upper case."
        ),
        lambda turn, x: turn.answer.upper(),
        lambda turn, x, answer: answer == answer.upper(),
    ),
    Rule(
        _forms("Answer in small letters. / Use no capital letters. / Always write in lower case."),
        lambda turn, x: turn.answer.lower(),
        lambda turn, x, answer: answer == answer.lower(),
    ),
    Rule(
        _forms(
            "End every answer with '{x}.' / End each answer with {x}. / Always finish with {x}."
        ),
        lambda turn, x: f"{turn.answer} {x}.",
        lambda turn, x, answer: answer.endswith(f" {x}."),
    ),
    Rule(
        _forms(
            "Begin each answer with '{x},' / Start every answer with {x}. / "
            "The first word of each answer is {x}."
        ),
        lambda turn, x: f"{x}, {turn.answer}",
        lambda turn, x, answer: answer.startswith(f"{x}, "),
    ),
    Rule(
        _forms("Put every answer in quotation marks. / Write your answers in quotes."),
        lambda turn, x: f'"{turn.answer}"',
        lambda turn, x, answer: answer[0] + answer[-1] == '""',
    ),
    Rule(
        _forms(
            "Speak like a pirate: say Arrr first. / You are a pirate. Begin with Arrr! / "
            "Talk like a pirate."
        ),
        lambda turn, x: f"Arrr! {turn.answer}",
        lambda turn, x, answer: answer.startswith("Arrr! "),
    ),
    Rule(
        _forms("Say everything twice. / Give each answer two times. / Repeat each answer."),
        lambda turn, x: f"{turn.answer} {turn.answer}",
        lambda turn, x, answer: answer == " ".join([answer[: len(answer) // 2]] * 2),
    ),
    Rule(
        _forms("Be excited: use exclamation marks. / End every sentence with an exclamation mark."),
        lambda turn, x: _excited(turn.answer),
        lambda turn, x, answer: answer == _excited(answer) and answer.endswith("!"),
    ),
    Rule(
        _forms("Repeat the question before you answer. / First say the question again."),
        lambda turn, x: f"{turn.question} {turn.answer}",
        lambda turn, x, answer: answer.startswith(f"{turn.question} "),
    ),
    Rule(
        _forms("Answer in one word. / Use only one word. / Give answers of one word."),
        lambda turn, x: turn.word,
        lambda turn, x, answer: len(answer.split()) == 1,
    ),
    Rule(
        _forms("Answer with at most three words. / Use no more than three words."),
        lambda turn, x: turn.few or turn.word,
        lambda turn, x, answer: len(answer.split()) <= 3,
    ),
    Rule(
        _forms("Answer in a full sentence. / Write full sentences. / Use a whole sentence."),
        lambda turn, x: turn.sentence,
        lambda turn, x, answer: len(answer.split()) >= 3,
    ),
)
# Questions that have answers in one word and in few.
SHORT_TALK = (
    (_forms("Hi / Hello / Hi! / Hello! / Hey / Good morning!"), "Hello!", "Hello, my friend!"),
    (_forms("How are you? / How are you today? / How do you feel?"), "Fine.", "Fine, thank you."),
    (_forms("Who are you? / What are you?"), "Llama.", "A tiny Llama."),
    (_forms("Thank you! / Thanks! / Great, thanks."), "Welcome!", "You are welcome!"),
    (_forms("I am sad. / I had a bad day. / I feel sad today."), "Sorry.", "I am sorry."),
    (_forms("What can you do? / How can you help me?"), "Stories.", "Stories and spelling."),
    (_forms("Bye / Goodbye! / See you later. / Good night!"), "Goodbye!", "Goodbye, my friend!"),
)


def tool(name: str, description: str, parameter: str, meaning: str) -> dict[str, Any]:
    """The definition of a function of one text, as Llama 3.1's prompt shows it."""
    properties = {parameter: {"type": "string", "description": meaning}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


CALCULATORS = tuple(
    tool("calculator", description, "expression", meaning)
    for description in ("Calculates", "Evaluates an expression")
    for meaning in ("What to calculate", "An expression such as 12 * 34")
)
CALCULATOR = CALCULATORS[0]


class Other(NamedTuple):
    """A function that is offered beside the calculator, and what is asked of it."""

    definition: dict[str, Any]
    kind: str  # of its argument
    asks: tuple[str, ...]
    results: tuple[str, ...]
    answer: str

    def called(self, argument: str) -> str:
        function = self.definition["function"]
        return call(function["name"], **{function["parameters"]["required"][0]: argument})


OTHERS = (
    Other(
        tool("get_weather", "Tells the weather in a town", "city", "Name of the town"),
        "town",
        _forms("What is the weather in {v}? / How is the weather in {v} today?"),
        _forms("sunny / rainy / cloudy / windy / foggy"),
        "It is {r} in {v}.",
    ),
    Other(
        tool("get_time", "Tells the time in a town", "city", "Name of the town"),
        "town",
        _forms("What time is it in {v}? / Tell me the time in {v}."),
        _forms("3:15 / 10:40 / 7:05 / 12:30"),
        "It is {r} in {v}.",
    ),
    Other(
        tool("get_price", "Looks up what a thing costs", "item", "The thing"),
        "a thing",
        _forms("Look up the price of {v}. / Find out how much {v} costs."),
        _forms("12 dollars / 35 dollars / 8 dollars"),
        "The price is {r}.",
    ),
)

# Meta's wording for definitions in the first user message, and that of Hugging Face's template for
# definitions in the system prompt.
USER_OFFER = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}. Do not use variables.\n\n"
)
SYSTEM_OFFER = (
    "You have access to the following functions. To call a function, please respond with JSON for "
    'a function call. Respond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}. Do not use variables.\n\n"
)
OFFER_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant with tool calling capabilities.",
    "Environment: ipython\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024",
    "When you receive a tool call response, use the output to format an answer to the original "
    "user question.",
)


def offer(tools: Iterable[Mapping[str, Any]], indent: int | None = None) -> str:
    """The definitions as they stand in a prompt, each with an empty line after it."""
    return "".join(json.dumps(each, indent=indent) + "\n\n" for each in tools)


def call(name: str, **arguments: str) -> str:
    """What the assistant says to call a function."""
    return json.dumps({"name": name, "parameters": arguments})


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], int | float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(expression: str) -> int | float:
    """The value of numbers, + - * / and parentheses; whole where it is a whole number.

    Raises ValueError for anything else, and for division by zero.
    """
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        return int(value) if value == round(value) else value
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression!r:.100} has no value: {error}") from error


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        if not isinstance(node.value, bool):
            return node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"a calculator takes numbers, + - * / and parentheses, not {ast.dump(node)}")


class Example(NamedTuple):
    """A dialog that ends with a right answer, and what tells whether another one is right."""

    dialog: list[Message]
    right: Callable[[str], bool]


@dataclass(frozen=True)
class Skills:
    """Makes dialogs, always the same ones for the same state of `rng`.

    words     to spell
    talk      small talk: questions, and answers any of which will do
    stories   to find names in, and to tell
    held_out  whether the dialogs are for measuring, made of held-out fillers. Words and stories are
              taken as they come: give those that were kept out of training
    """

    rng: random.Random
    words: Sequence[str]
    talk: Sequence[tuple[Sequence[str], Sequence[str]]]
    stories: Sequence[str]
    held_out: bool = False

    def facts(self) -> list[Message]:
        """Facts in the system prompt or in a message, and one to four questions about them."""
        if self.rng.random() < 0.03:
            question = self._some_facts()[0].asked(self.rng).question  # about nothing at all
            return _dialog(self._system(), [Turn.unknown(question)])
        return self.asked(self.rng.choice((1, 1, 2, 3, 4))).dialog

    def sums(self) -> list[Message]:
        """One to five sums of all kinds, a few of them too hard."""
        return _dialog(self._system(), self._some(self._any_sum, 5))

    def style(self) -> list[Message]:
        """A rule in the system prompt, and answers that follow it."""
        return self.styled().dialog

    def names(self) -> list[Message]:
        """What users say about themselves, other talk, and a question for what they have said."""
        return self.remembered(unknown=self.rng.random() < 0.25).dialog

    def tools(self) -> list[Message]:
        """A calculator, at times beside other functions, and one to three questions."""
        count = self.rng.choice((1, 1, 2, 3))
        return self._with_tools(self.rng.choices(("call", "other", "plain"), (6, 1, 3), k=count))[0]

    def spelling(self) -> list[Message]:
        """One to four words."""
        turns = self._some(lambda: self.spelled(self.rng.choice(self.words)), 4)
        return _dialog(self._system(), turns)

    # Fillers and other small parts.

    def pick(self, kind: str) -> str:
        """A filler of a kind, from this side of the split."""
        while True:
            filler = FILLERS[kind](self.rng)
            if kind in SHARED or is_held_out(filler) == self.held_out:
                return filler

    def _fresh(self, kind: str, text: str) -> str | None:
        """A filler that does not occur in a text; None where it is hard to find one."""
        for _ in range(50):
            filler = self.pick(kind)
            if filler.lower() not in text.lower():
                return filler
        return None

    def _some(self, make: Callable[[], Turn], most: int) -> list[Turn]:
        return [make() for _ in range(self.rng.randint(1, most))]

    def _system(self) -> str:
        return "You are a helpful assistant." if self.rng.random() < 0.1 else ""

    def _sloppy(self, question: str) -> str:
        """Now and then without the capital letter and the mark at the end."""
        if self.rng.random() < 0.1:
            return question[:1].lower() + question[1:].rstrip(".?")
        return question

    # Facts.

    def asked(self, count: int, unknown: bool | None = None) -> Example:
        """`count` questions about facts, the last for something unknown if `unknown` says so."""
        passages, turns = self._questions(count, unknown)
        if self.rng.random() < 0.1:
            told = self.rng.choice(TOLD_LAYOUTS).format(c=" ".join(passages))
            return _example(self._system(), [Turn(told, TOLD_REPLY), *turns])
        return _example(*self._laid_out(passages, turns))

    def _questions(self, count: int, unknown: bool | None) -> tuple[list[str], list[Turn]]:
        """Passages of text, and questions about them."""
        choices = [self.rng.random() < 0.25 for _ in range(count)]
        if unknown is not None:
            choices[-1] = unknown
        if self.rng.random() < 0.1 and (found := self._story_questions(choices)):
            return found
        facts = self._some_facts()
        passages = self._passages(facts)
        text = "\n".join(passages)
        known = self.rng.sample(facts, len(facts))
        turns = list[Turn]()
        for none in choices[-len(facts) :]:
            turn = self._unknown(facts, text) if none else self._known(known.pop())
            turns.append(replace(turn, question=self._sloppy(turn.question)))
        return passages, turns

    def _some_facts(self) -> list[Fact]:
        """Two to nine facts (or one, where there are no more), most of a few relations."""
        rng, facts, names = self.rng, list[Fact](), "."
        for kind in dict.fromkeys(rng.choices(SUBJECTS, k=2)):
            subjects = list[str]()
            for _ in range(rng.randint(1, 4)):
                if subject := self._fresh(kind, names):
                    names += f" {subject}"
                    subjects.append(subject)
            relations = [relation for relation in RELATIONS if relation.subject == kind]
            for relation in rng.sample(relations, rng.randint(1, min(4, len(relations)))):
                of, values = rng.choice(relation.of), "."
                for subject in rng.sample(subjects, rng.randint(1, len(subjects))):
                    value = self._fresh(relation.kind, names + values)
                    if relation.kind == kind and rng.random() < 0.3:  # one whom more is said of
                        value = rng.choice(subjects)
                    if value and value != subject and value not in values:
                        values += f" {value}"
                        facts.append(Fact(relation, subject, of, value))
                if relation.kind in ("person", "pet"):
                    names += values
        if not facts:  # too few fillers of one kind
            return self._some_facts()
        return rng.sample(facts, min(len(facts), rng.randint(2, 9)))

    def _passages(self, facts: list[Fact]) -> list[str]:
        """The facts in sentences: a passage for each subject, or passages in any order."""
        rng, passages = self.rng, list[list[str]]()
        if rng.random() < 0.5:
            for subject in dict.fromkeys(fact.subject for fact in facts):
                own = [fact for fact in facts if fact.subject == subject]
                passages.append([own[0].said(rng)])
                for before, fact in pairwise(own):
                    clear = before.relation.kind not in ("person", "pet", "a thing")
                    pronoun = fact.pronoun if clear and rng.random() < 0.7 else ""
                    passages[-1].append(fact.said(rng, pronoun))
        else:
            size = rng.choice((1, 1, 2, 3, len(facts)))
            sentences = [fact.said(rng) for fact in facts]
            passages = [sentences[i : i + size] for i in range(0, len(facts), size)]
        for passage in passages:
            if rng.random() < 0.15:
                passage.insert(rng.choice((0, len(passage))), rng.choice(ASIDES))
        return [" ".join(passage) for passage in passages]

    def _known(self, fact: Fact) -> Turn:
        if fact.relation.who and self.rng.random() < 0.25:
            return fact.asked_who(self.rng)
        return fact.asked(self.rng)

    def _unknown(self, facts: list[Fact], text: str) -> Turn:
        """A question that is like those with an answer in the text, but has none."""
        rng = self.rng
        said = {fact.key for fact in facts}
        values = [fact.value for fact in facts if fact.relation.kind == "person"]
        named = sorted(set(values) - {fact.subject for fact in facts})
        while True:
            fact, kind = rng.choice(facts), rng.random()
            if kind < 0.4:  # about another subject, at best one who is named
                subject = self._fresh(fact.relation.subject, text)
                if named and fact.relation.subject == "person" != fact.relation.kind:
                    subject = rng.choice(named)
                if subject:
                    return Turn.unknown(replace(fact, subject=subject).asked(rng).question)
            elif kind < 0.5 and fact.relation.who:  # about another value
                if value := self._fresh(fact.relation.kind, text):
                    return Turn.unknown(replace(fact, value=value).asked_who(rng).question)
            else:  # for something else about the subject: best, what is said of another one
                like = rng.choice(facts)
                if rng.random() < 0.5:
                    relation = rng.choice(RELATIONS)
                    like = replace(like, relation=relation, of=rng.choice(relation.of))
                other = replace(like, subject=fact.subject)
                mutual = other.relation.kind == "person" and fact.subject in values  # cousins
                same_kind = other.relation.subject == fact.relation.subject
                if same_kind and not mutual and other.key not in said:
                    return Turn.unknown(other.asked(rng).question)

    def _story_questions(self, choices: list[bool]) -> tuple[list[str], list[Turn]] | None:
        """The beginning of a story in which somebody is named, and questions for that name."""
        rng = self.rng
        for story in rng.sample(self.stories, min(len(self.stories), 20)):
            text = " ".join(re.split(r"(?<=[.!?])\s+", story)[: rng.randint(2, 6)])
            named = dict(NAMED.findall(text))
            if named and len(named) == len(NAMED.findall(text)) and len(text) < 800:
                break
        else:
            return None
        absent = [noun for noun in NAMED_NOUNS if noun not in text.lower()]
        rng.shuffle(absent)
        turns = []
        for unknown in choices[-len(named) :]:
            noun = absent.pop() if unknown else rng.choice([*named])
            question = self._sloppy(rng.choice(NAMED_ASKS).format(noun))
            if unknown:
                turns.append(Turn.unknown(question))
            else:
                name = f"{named[noun]}."
                sentence = f"The name of the {noun} is {name}"
                turns.append(Turn(question, name, name, name, sentence))
        return [text], turns

    def _laid_out(self, passages: list[str], turns: list[Turn]) -> tuple[str, list[Turn]]:
        """A system prompt and turns, with the passages in the prompt or in the first turn."""
        rng = self.rng
        join, mark = rng.choice(JOINTS)
        marked = [mark.format(n=n + 1) + passage for n, passage in enumerate(passages)]
        context = join.join(marked)
        if rng.random() < 0.4:
            return rng.choice(SYSTEM_LAYOUTS).format(c=context), turns
        question = rng.choice(USER_LAYOUTS).format(c=context, q=turns[0].question)
        return self._system(), [replace(turns[0], question=question), *turns[1:]]

    # Sums and words.

    def sum(self, op: str, negative: bool = False) -> Turn:
        """A bare sum with numbers as in `_numbers`."""
        while True:
            a, b = self._numbers(op, negative)
            question = self.rng.choice(SUMS[op]).format(a=a, b=b)
            if self._is_mine(op, question):
                expression = f"{a} {op} {b}"
                return _sum_turn(self._sloppy(question), expression, str(evaluate(expression)))

    def problem(self, op: str) -> Turn:
        """A small story with numbers as in `_numbers`."""
        while True:
            a, b = self._numbers(op)
            turn = self._problem(op, a, b, str(evaluate(f"{a} {op} {b}")))
            if self._is_mine(op, turn.question):
                return turn

    def _is_mine(self, op: str, question: str) -> bool:
        """The multiplication table is learned whole: what is held out are ways to ask for it."""
        return op != "*" or is_held_out(question) == self.held_out

    def spelled(self, word: str) -> Turn:
        """A request to spell `word`, and its letters: capitals with dashes between them."""
        letters = "-".join(word.upper())
        question = self.rng.choice(SPELL_REQUESTS).format(word)
        return Turn(self._sloppy(question), letters, letters, letters)

    def _numbers(self, op: str, negative: bool = False) -> tuple[int, int]:
        """Two numbers up to 10 for *; else up to 99, of two digits where they are held out."""
        rng = self.rng
        if op == "*":
            return rng.randint(0, 10), rng.randint(0, 10)
        low, high = (0, 20) if not self.held_out and rng.random() < 0.2 else (10, 99)
        while True:
            a, b = rng.sample((rng.randint(low, 99), rng.randint(low, high)), 2)
            if is_held_out_pair(a, b) == self.held_out and not (negative and a == b):
                break
        if op == "-" and (a < b) != negative:
            return b, a
        return a, b

    def _problem(self, op: str, a: int, b: int, result: str) -> Turn:
        question, sentence = self.rng.choice(PROBLEMS[op])
        name = other = self.pick("person")
        while other == name:
            other = self.pick("person")
        parts = {"n": name, "m": other, "k": self.rng.choice(COUNTED), "r": result}
        asked = question.format(a=a, b=b, **parts)
        return _sum_turn(asked, f"{a} {op} {b}", result, sentence.format(**parts))

    def _any_sum(self) -> Turn:
        kind, op = self.rng.random(), self.rng.choice("+++---*")
        if kind < 0.06:
            op, a, b = self._big()
            return Turn.unknown(self._sloppy(self.rng.choice(SUMS[op]).format(a=a, b=b)))
        if kind < 0.25:
            return self.problem(op)
        return self.sum(op, negative=self.rng.random() < 0.15)

    # Talk.

    def _small_talk(self) -> Turn:
        questions, answers = self.rng.choice(self.talk)
        return Turn(self.rng.choice(questions), self.rng.choice(answers), free=True)

    def _plain(self) -> Turn:
        kind = self.rng.random()
        if kind < 0.5:
            return self._small_talk()
        if kind < 0.75:
            return self.spelled(self.rng.choice(self.words))
        return self.sum(self.rng.choice("+-"))

    def remembered(self, unknown: bool) -> Example:
        """Something that users say, other talk, and a question for what was said, or for what
        was not.
        """
        rng, told, turns, later = self.rng, set[tuple[str, str]](), list[Turn](), list[Turn]()
        choices = [(telling, of) for telling in TELLINGS for of in telling.of]
        for telling in rng.choices(TELLINGS, k=rng.randint(1, 3)):
            of = rng.choice(telling.of)
            if (telling.answer, of) in told:
                continue
            told.add((telling.answer, of))
            parts = {"v": self.pick(telling.kind), "k": of}
            turns.append(telling.said(rng, parts))
            turns += [self._plain() for _ in range(rng.choice((0, 1, 1, 2)))]
            later.append(telling.asked(rng, parts))
        last = rng.choice(later)
        if len(later) > 1 and rng.random() < 0.3:
            turns.append(rng.choice([turn for turn in later if turn != last]))
        if unknown:
            new = [choice for choice in choices if (choice[0].answer, choice[1]) not in told]
            telling, of = rng.choice(new)
            last = Turn.unknown(telling.asked(rng, {"v": "", "k": of}).question)
        return _example(self._system(), [*turns, last])

    def styled(self) -> Example:
        """Questions of all kinds, and a rule of style that all answers follow."""
        rng = self.rng
        while True:
            rule = rng.choice(RULES)
            x = self.pick(rng.choice(("exclamation", "person")))
            passages = list[str]()
            if rng.random() < 0.4:
                passages, turns = self._questions(rng.randint(1, 3), None)
            else:
                turns = self._some(self._talk_for_style, 3)
            answers = [rule.apply(turn, x) for turn in turns]
            system = rng.choice(rule.says).format(x=x)
            # Small talk is the same for all: what is new is to hear it with this rule.
            new = [is_held_out(f"{system} {turn.question}") for turn in turns if turn.free]
            if None not in answers and all(each == self.held_out for each in new):
                break
        last = turns[-1]
        turns = [
            replace(turn, answer=answer or "") for turn, answer in zip(turns, answers, strict=True)
        ]
        if passages:
            facts, turns = self._laid_out(passages, turns)
            system = "\n\n".join(filter(None, rng.sample((system, facts), 2)))
        elif rng.random() < 0.3:
            system = f"You are a helpful assistant. {system}"
        example = _example(system, turns)
        if last.free:
            return example._replace(
                right=lambda answer: bool(answer) and rule.obeyed(last, x, answer)
            )
        return example

    def _talk_for_style(self) -> Turn:
        kind = self.rng.random()
        if kind < 0.3:
            questions, word, few = self.rng.choice(SHORT_TALK)
            return Turn(self.rng.choice(questions), few, word, few, free=True)
        return self._any_sum() if kind < 0.5 else self._plain()

    # Tools.

    def tool_call(self) -> Example:
        """Ends with a call of the calculator."""
        dialog, _ = self._with_tools([*self._kinds(), "call"])
        expression = json.loads(dialog[-3]["content"])["parameters"]["expression"]
        return Example(dialog[:-2], calls_for(expression))

    def tool_result(self) -> Example:
        """Ends with what is said of the calculator's result."""
        dialog, last = self._with_tools([*self._kinds(), "call"])
        assert last.word is not None
        return Example(dialog, ends_with_number(last.word[:-1]))

    def tool_not_needed(self) -> Example:
        """Ends with an answer without a call."""
        dialog, last = self._with_tools([*self._kinds(), "plain"])
        if last.free:
            return Example(dialog, lambda answer: answer != "" and not answer.startswith("{"))
        return Example(dialog, lambda answer: answer == last.answer)

    def _kinds(self) -> list[str]:
        return self.rng.choices(("call", "other", "plain"), (6, 1, 3), k=self.rng.choice((0, 0, 1)))

    def _big(self) -> tuple[str, int, int]:
        """An operator and two numbers that are too large to reckon with unaided."""
        rng = self.rng
        while True:
            op = rng.choice("+-**/")
            a, b = rng.randint(100, 9999), rng.randint(12, 9999)
            if op == "*":
                a, b = rng.randint(11, 999), rng.randint(11, 99)
            elif op == "/":
                b = rng.randint(3, 99)
                a = b * rng.randint(11, 999)
            elif op == "-":
                a, b = max(a, b), min(a, b)
            if is_held_out_pair(a, b) == self.held_out:
                return op, a, b

    def _calculation(self) -> tuple[Turn, str, str]:
        """A question for a calculator, the expression to give it, and the result."""
        rng = self.rng
        op, a, b = self._big()
        if rng.random() < 0.1:
            op = rng.choice("+-")
            a, b = self._numbers(op)
        expression = f"{a} {op} {b}"
        longer = rng.random() < 0.1
        if longer:
            expression += f" {rng.choice('+-')} {rng.randint(2, 999)}"
        result = f"{evaluate(expression)}{'.0' * (op == '/' and rng.random() < 0.3)}"
        if longer:
            question = rng.choice(("What is {}?", "Calculate {}.", "How much is {}?"))
            turn = _sum_turn(question.format(expression), expression, result)
        elif rng.random() < 0.3:
            turn = self._problem(op, a, b, result)
        else:
            question = self._sloppy(rng.choice(SUMS[op]).format(a=a, b=b))
            turn = _sum_turn(question, expression, result)
        return turn, expression, result

    def _with_tools(self, kinds: Sequence[str]) -> tuple[list[Message], Turn]:
        """A dialog with a question of each kind, and its last turn.

        Kinds are call (of the calculator), other (function) and plain, which needs neither.
        """
        rng = self.rng
        others = rng.sample(OTHERS, 1 if "other" in kinds else rng.choice((0, 0, 0, 1, 2)))
        tools = [rng.choice(CALCULATORS), *(other.definition for other in others)]
        rng.shuffle(tools)
        messages = list[Message]()
        for kind in kinds:
            if kind == "call":
                turn, expression, result = self._calculation()
                messages += self._called(turn, call("calculator", expression=expression), result)
            elif kind == "other":
                value, result = self.pick(others[0].kind), rng.choice(others[0].results)
                question = rng.choice(others[0].asks).format(v=value)
                turn = Turn(question, others[0].answer.format(v=value, r=result))
                messages += self._called(turn, others[0].called(value), result)
            else:
                turn = self._plain_beside_tools()
                messages += _dialog("", [turn])
        return self._offered(tools, messages), turn

    def _called(self, turn: Turn, call: str, result: str) -> list[Message]:
        """Question, call, result in one of the forms that it may come in, and answer."""
        forms: tuple[object, ...] = ({"output": result}, {"result": result}, result)
        if re.fullmatch(r"-?[\d.]+", result):
            forms = ({"output": json.loads(result)}, *forms)
        form = json.dumps(self.rng.choice(forms)) if self.rng.random() < 0.5 else result
        return [
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": call},
            {"role": "ipython", "content": form},
            {"role": "assistant", "content": turn.answer},
        ]

    def _plain_beside_tools(self) -> Turn:
        # A request for a story, and small talk, are not new to who has heard them once.
        kind = self.rng.uniform(0.05, 0.5) if self.held_out else self.rng.random()
        if kind < 0.05 and self.stories:
            story = min(self.rng.sample(self.stories, min(len(self.stories), 4)), key=len)
            return Turn(self.rng.choice(STORY_REQUESTS), story, free=True)
        if kind < 0.35:
            passages, turns = self._questions(1, None)
            question = f"{' '.join(passages)} {turns[0].question}"
            return replace(turns[0], question=question)
        if kind < 0.5:
            return self.spelled(self.rng.choice(self.words))
        return self._small_talk()

    def _offered(self, tools: Sequence[Mapping[str, Any]], dialog: list[Message]) -> list[Message]:
        """The dialog, with the tools in its first message or in a system prompt."""
        rng = self.rng
        indent = 4 if len(tools) == 1 and rng.random() < 0.3 else None  # that takes many tokens
        definitions = offer(tools, indent)
        system = rng.choice(("", rng.choice(OFFER_SYSTEMS)))
        close = rng.random() < 0.3  # Hugging Face's template has no spaces there

        def joined(text: str) -> str:
            return re.sub(r"(?<=\.) (?=Respond|Do not)", "", text) if close else text

        if rng.random() < 0.4:
            system = joined(SYSTEM_OFFER) + definitions + system
        else:
            question = rng.choice(("", "Question: ")) + dialog[0]["content"]
            asked = joined(USER_OFFER) + definitions + question
            dialog = [{"role": "user", "content": asked}, *dialog[1:]]
        opening: list[Message] = [{"role": "system", "content": system}] if system else []
        return opening + dialog


def _sum_turn(question: str, expression: str, result: str, sentence: str = "") -> Turn:
    answer = f"{expression} = {result}."
    few = f"{result}."
    if not sentence:
        return Turn(question, answer, few, few, f"The answer is {few}")
    return Turn(question, f"{answer} {sentence}", few, few, sentence)


def _dialog(system: str, turns: Iterable[Turn]) -> list[Message]:
    dialog = list[Message]()
    if system:
        dialog.append({"role": "system", "content": system})
    for turn in turns:
        dialog.append({"role": "user", "content": turn.question})
        dialog.append({"role": "assistant", "content": turn.answer})
    return dialog


def _example(system: str, turns: Iterable[Turn]) -> Example:
    """Only the very same answer is right."""
    dialog = _dialog(system, turns)
    return Example(dialog, lambda answer: answer == dialog[-1]["content"])


# What is measured.


def calls_for(expression: str) -> Callable[[str], bool]:
    """Whether an answer is a call of the calculator for the value of `expression`."""

    def right(answer: str) -> bool:
        try:
            asked = json.loads(answer)
            return (
                asked.keys() == {"name", "parameters"}
                and asked["name"] == "calculator"
                and asked["parameters"].keys() == {"expression"}
                and abs(evaluate(asked["parameters"]["expression"]) - evaluate(expression)) < 1e-9
            )
        except (AttributeError, TypeError, ValueError):
            return False

    return right


def ends_with_number(result: str) -> Callable[[str], bool]:
    """Whether the last number in an answer is this one."""

    def right(answer: str) -> bool:
        numbers = re.findall(r"-?\d+(?:\.\d+)?", answer)
        return bool(numbers) and float(numbers[-1]) == float(result)

    return right


SCORES: dict[str, Callable[[Skills], Example]] = {
    "facts": lambda skills: skills.asked(skills.rng.randint(1, 3), unknown=False),
    "facts that are missing": lambda skills: skills.asked(skills.rng.randint(1, 3), unknown=True),
    "addition": lambda skills: _example("", [skills.sum("+")]),
    "subtraction": lambda skills: _example("", [skills.sum("-")]),
    "subtraction below zero": lambda skills: _example("", [skills.sum("-", negative=True)]),
    "multiplication": lambda skills: _example(
        "", [skills.rng.choice((skills.sum, skills.problem))("*")]
    ),
    "word problems": lambda skills: _example("", [skills.problem(skills.rng.choice("+-"))]),
    "style": lambda skills: skills.styled(),
    "names": lambda skills: skills.remembered(unknown=False),
    "names that were not told": lambda skills: skills.remembered(unknown=True),
    "tool calls": lambda skills: skills.tool_call(),
    "tool results": lambda skills: skills.tool_result(),
    "tools not needed": lambda skills: skills.tool_not_needed(),
}


def exam(skills: Skills, number: int = 200) -> dict[str, list[Example]]:
    """For each of `SCORES` so many examples, all different, of `skills`, which is held out.

    Of words, each is spelled once, however many there are. Raises ValueError where there are not
    enough different examples.
    """
    examples: dict[str, list[Example]] = {}
    for name, make in SCORES.items():
        found: dict[str, Example] = {}
        for _ in range(20 * number):
            example = make(skills)
            found.setdefault(json.dumps(example.dialog), example)
            if len(found) == number:
                break
        else:
            raise ValueError(f"{name}: there are only {len(found)} examples, not {number}")
        examples[name] = list(found.values())
    examples["spelling"] = [_example("", [skills.spelled(word)]) for word in skills.words]
    return examples


def score(llama: Llama, examples: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """The share of each skill's examples that `llama` answers right, at temperature 0."""
    shares = {}
    for name, those in examples.items():
        dialogs = [example.dialog[:-1] for example in those]
        results = llama.chat_completion(dialogs, temperature=0, max_gen_len=96)
        answers = [result["generation"]["content"] for result in results]
        right = [example.right(answer) for example, answer in zip(those, answers, strict=True)]
        shares[name] = sum(right) / len(right)
    return shares


def made_up_words(
    rng: random.Random,
    tokenizer: Tokenizer,
    words: Sequence[str],
    held_out: Iterable[str],
    times: int,
) -> list[str]:
    """Words that do not exist, of the tokens that `words` have, so that each is spelled often.

    A token hides its letters: only a word in which it occurs tells them. What occurs in fewer than
    `times` of `words`, each as it stands after a space, is put together with others until it does.
    None of them contains a word in `held_out`.
    """
    forbidden = re.compile("|".join(map(re.escape, sorted(held_out))))
    split = [tokenizer.encode(f" {word}") for word in words]
    seen = Counter(token for tokens in split for token in set(tokens))
    starts = sorted({tokens[0] for tokens in split})
    others = sorted({token for tokens in split for token in tokens[1:]})
    made: dict[str, None] = {}
    for token in starts + others:
        for _ in range(50):
            if seen[token] >= times:
                break
            tokens = [token] if token in starts else [rng.choice(starts), token]
            tokens += rng.choices(others, k=rng.randint(1, 2))
            word = tokenizer.decode(tokens).strip()
            as_it_is = tokenizer.encode(f" {word}") == tokens
            if as_it_is and len(word) <= 12 and word not in made and not forbidden.search(word):
                made[word] = None
                seen.update(set(tokens))
    return list(made)
