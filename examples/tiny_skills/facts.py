"""Facts, how they are said and asked for, and how a context of them is laid out."""

import random
import re
from dataclasses import dataclass

from examples.tiny_skills.fillers import BOYS, COUNTED, GIRLS, items

UNKNOWN = "I don't know."


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

    @property
    def sentence(self) -> str:
        """Said in the relation's first way."""
        return self._filled(self.relation.says[0])

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
        answer = f"{capital(answer)}."
        word = one_word(answer)
        few = answer if len(answer.split()) <= 3 else None
        return Turn(self._filled(form), self.sentence, word, few, self.sentence)

    def _filled(self, form: str) -> str:
        return capital(form.format(s=self.subject, k=self.of, v=self.value))


def capital(text: str) -> str:
    """The text, beginning with a capital letter."""
    return text[:1].upper() + text[1:]


def one_word(answer: str) -> str | None:
    """An answer without its article, where that is one word."""
    bare = re.sub(r"^(A|An|The|By) ", "", answer)
    return None if " " in bare else capital(bare)


def forms(line: str) -> tuple[str, ...]:
    """Ways to say something, which " / " parts."""
    return tuple(line.split(" / ")) if line else ()


def _relations(table: str) -> tuple[Relation, ...]:
    relations = []
    for block in table.strip().split("\n\n"):
        title, says, asks, *who = block.split("\n")
        subject, kind = title.split(": ")
        kind, _, group = kind.partition(" of ")
        of = GROUPS[group] if group else ("",)
        ways = forms(says), forms(asks), forms("".join(who))
        relations.append(Relation(subject, kind, of, *ways))
    return tuple(relations)


GROUPS = {
    "relatives": items("best friend, boss, classmate, coach, cousin, neighbor, partner, roommate"),
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
ABOUT = ("Tell me about {}.", "What do you know about {}?", "What is said about {}?")
ASIDES = items(
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
