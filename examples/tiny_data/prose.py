"""Facts in sentences, as people write them, and the questions that they leave open."""

import re
from dataclasses import dataclass, replace

from examples.tiny_data.claims import ABOUT, Claim, Text, closed, sections, she_or_he, unused
from examples.tiny_data.fillers import BOYS, GIRLS, SURNAMES
from examples.tiny_data.likeness import near_name, nearly, twin
from examples.tiny_data.relations import OF_SUBJECT, RELATIONS, SUBJECTS, Relation
from examples.tiny_data.turns import Source, capital

ASIDES = sections("fact_asides.txt")[""]
PERSONS = ("person",) * 100
PEOPLE = ("man", "person", "pet", "woman")
# What is asked most of a person or a thing, told or not.
COMMON = tuple(
    relation
    for relation in RELATIONS
    if relation.kind in ("age", "job", "phone", "height", "price", "email", "street")
    or any("favorite" in form or "How tall" in form or "birthday" in form for form in relation.asks)
)
UNSAID = sections("fact_unsaid.txt")
ONE = re.compile(
    r"lives in|was born|comes from|grew up|works in|got married|died|married to|written by|mayor|"
    r"made of|run by|belongs to|favorite|takes place|goes to work|works for"
)
MUTUAL = re.compile(r"\b(met|sits next|married|in love|phone|called)\b")
ONLY = (
    "animal",
    "age",
    "day",
    "email",
    "number",
    "street",
    "weight",
    "date",
    "time",
    "price",
    "phone",
    "length",
    "year",
    "minutes",
)
_PERSONAL = re.compile(
    r"\b(he|she|it|his|her|him|they|them|their|we|our|us|i|my|me|you|your|its)\b|\"", re.I
)


@dataclass(frozen=True)
class Fact:
    """A value of a relation, said in a form; `of` stands for the relation's {k}."""

    relation: Relation
    subject: str
    of: str
    value: str
    form: str

    @property
    def inner(self) -> str:
        """The clause as it stands inside a sentence, without a dot."""
        form = self.form
        if not form.startswith("{"):
            form = form[:1].lower() + form[1:]
        return self._filled(form.removesuffix("."))

    @property
    def clause(self) -> str:
        return capital(self._filled(self.form))

    @property
    def predicate(self) -> str | None:
        """What is said of the subject, if the clause begins with that."""
        if not re.match(r"\{s\} [a-z]", self.form):
            return None
        return self._filled(self.form.removeprefix("{s} ").removesuffix("."))

    @property
    def leaves_clear(self) -> bool:
        """Whether a pronoun for the subject is clear in the next sentence."""
        kind, subject = self.relation.kind, self.relation.subject
        if subject == "person":
            return kind not in PEOPLE
        return kind in PEOPLE or kind not in (*SUBJECTS, "a thing")

    def with_pronoun(self) -> str:
        """The sentence with a pronoun, if it begins with the subject."""
        pronoun = she_or_he(self.subject) if self.relation.subject == "person" else "it"
        own = {"he": "his", "she": "her", "it": "its"}[pronoun]
        form = re.sub(r"^\{s\}('s)?", lambda match: own if match[1] else pronoun, self.form)
        return capital(self._filled(form))

    def claim(self) -> Claim:
        relation = self.relation
        asks = tuple(form.replace("{k}", self.of) for form in relation.asks)
        who = tuple(
            form.replace("{k}", self.of).replace("{v}", self.value) for form in relation.who
        )
        only = relation.kind in ONLY or bool(ONE.search(relation.says[0]))
        is_person = relation.subject == "person"
        return Claim(
            self.subject, self.value, self.clause, asks, who, is_person, only, relation.kind
        )

    def _filled(self, form: str) -> str:
        text = form.replace("{s}", self.subject).replace("{k}", self.of)
        return closed(text.replace("{v}", self.value))


def some_facts(source: Source, most: int) -> list[Fact]:
    """One to `most` facts, most of a few relations, several of them with values of one kind."""
    rng, facts, names = source.rng, list[Fact](), "."
    kinds = [rng.choice((*SUBJECTS, *PERSONS)) for _ in range(rng.choice((1, 1, 2)))]
    kinds = list(dict.fromkeys(kinds))
    for kind in kinds:
        subjects, with_twins = list[str](), kind == "person" and rng.random() < 0.15
        for _ in range(rng.randint(2 if most > 7 else 1, 5 // len(kinds))):
            subject = unused(source, kind, names)
            if with_twins and subjects:
                subject = twin(source, subjects[-1], names)
            elif with_twins:
                subject = f"{rng.choice(GIRLS + BOYS)} {rng.choice(SURNAMES)}"
            if subject:
                subjects.append(subject)
                names += f" {subject}"
        if not subjects:
            continue
        relations = OF_SUBJECT[kind]
        least = 2 if most > 7 and len(relations) > 1 else 1
        chosen = rng.sample(relations, rng.randint(least, min(4, len(relations))))
        alike = [r for r in relations if r.kind == chosen[0].kind and r not in chosen]
        if alike and rng.random() < 0.5:
            chosen.append(rng.choice(alike))
        chosen = [r for i, r in enumerate(chosen) if not any(nearly(r, o) for o in chosen[:i])]
        for relation in chosen:
            of, values = rng.choice(relation.of), list[str]()
            told = rng.choice((len(subjects), rng.randint(1, len(subjects))))
            for subject in rng.sample(subjects, told):
                value = unused(source, relation.kind, names)
                if values and rng.random() < 0.12:
                    value = rng.choice(values)  # what two have in common
                elif MUTUAL.search(relation.says[0]):
                    pass
                elif relation.kind == kind and len(subjects) > 1 and rng.random() < 0.3:
                    value = rng.choice([each for each in subjects if each != subject])
                if value is None or (value in values and relation.kind == kind):
                    continue
                values.append(value)
                names += f" {value}"
                facts.append(Fact(relation, subject, of, value, rng.choice(relation.says)))
    if not facts:
        return some_facts(source, most)
    return rng.sample(facts, min(len(facts), rng.randint((most + 1) // 2, most)))


def prose(source: Source, most: int) -> Text:
    """Facts in sentences, and what they leave open."""
    facts = some_facts(source, most)
    passages = passages_of(source, facts)
    claims = [fact.claim() for fact in facts]
    missing = _missing(source, facts, claims, "\n".join(passages))
    return Text(passages, claims, missing)


def passages_of(source: Source, facts: list[Fact]) -> list[str]:
    """The facts in sentences: a passage for each subject, or passages in any order."""
    rng, passages = source.rng, list[list[str]]()
    if rng.random() < 0.55:
        for subject in dict.fromkeys(fact.subject for fact in facts):
            passages.append(_of_one(source, [f for f in facts if f.subject == subject]))
        if rng.random() < 0.25:
            passages = [[sentence for passage in passages for sentence in passage]]
    else:
        sentences = _of_many(source, facts)
        size = rng.choice((1, 1, 2, 2, 3, 4, len(sentences)))
        passages = [sentences[i : i + size] for i in range(0, len(sentences), size)]
    with_asides = rng.choice((0.0, 0.1, 0.2, 0.55))
    for passage in passages:
        while rng.random() < with_asides:
            passage.insert(rng.choice((0, len(passage))), rng.choice(ASIDES))
            if len(passage) > 12:
                break
    told = [" ".join(passage) for passage in passages]
    if rng.random() < 0.12 and (line := _story_line(source, facts)):
        told.insert(rng.randrange(len(told) + 1), line)
    return told


def _of_one(source: Source, facts: list[Fact]) -> list[str]:
    """Sentences about one subject."""
    rng, sentences, i = source.rng, list[str](), 0
    while i < len(facts):
        fact = facts[i]
        if (
            i + 1 < len(facts)
            and rng.random() < 0.4
            and (both := _two_of_one(source, *facts[i : i + 2]))
        ):
            sentences.append(both)
            i += 2
            continue
        clear = i > 0 and facts[i - 1].leaves_clear
        sentences.append(fact.with_pronoun() if clear and rng.random() < 0.65 else fact.clause)
        i += 1
    return sentences


def _two_of_one(source: Source, one: Fact, two: Fact) -> str | None:
    """Two facts about one subject in a sentence, if they go together."""
    rng, first, second = source.rng, one.predicate, two.predicate
    if first is None or second is None:
        return None
    name, is_person = capital(one.subject), one.relation.subject == "person"
    ways = [
        f"{name} {first} and {second}.",
        f"{name}, {'who' if is_person else 'which'} {first}, {second}.",
    ]
    if is_person and re.match(r"is an? ", first):
        ways += [f"{name}, {first.removeprefix('is ')}, {second}."] * 3
    if is_person and (age := re.fullmatch(r"is (\d+) years old", first)):
        ways += [f"{name} ({age[1]}) {second}.", f"{name}, {age[1]}, {second}."]
    if is_person and (town := re.fullmatch(r"(?:is|comes) from ([A-Z][\w ]+)", first)):
        ways += [f"{name} from {town[1]} {second}."]
    return closed(rng.choice(ways))


def _of_many(source: Source, facts: list[Fact]) -> list[str]:
    """Sentences in which the facts stand in their order, some of them in pairs."""
    rng, sentences, i = source.rng, list[str](), 0
    while i < len(facts):
        fact = facts[i]
        following = facts[i + 1] if i + 1 < len(facts) else None
        if following and following.subject != fact.subject and rng.random() < 0.25:
            a, b = fact.inner, following.inner
            joint = rng.choice(
                ("While {}, {}.", "{}, and {}.", "{}, but {}.", "{}; {}.", "{}, whereas {}.")
            )
            sentences.append(closed(capital(joint.format(a, b))))
            i += 2
        else:
            sentences.append(fact.clause)
            i += 1
    return sentences


def _story_line(source: Source, facts: list[Fact]) -> str | None:
    """Sentences of a story that name nobody who is asked about, and nobody by a pronoun."""
    rng = source.rng
    if not source.stories:
        return None
    lines = re.split(r"(?<=[.!?])\s+", rng.choice(source.stories))
    taken = {w for f in facts for w in re.findall(r"\w+", f"{f.subject} {f.value}")}
    good = [
        line
        for line in lines
        if len(line) < 160
        and re.match(r"[A-Z].*[.!?]$", line)
        and not _PERSONAL.search(line)
        and not taken & set(re.findall(r"\w+", line))
    ]
    return " ".join(rng.sample(good, min(len(good), rng.randint(1, 2)))) or None


def _missing(
    source: Source, facts: list[Fact], claims: list[Claim], said: str
) -> list[tuple[str, str]]:
    """Questions like those with an answer, which have none."""
    rng, missing = source.rng, list[tuple[str, str]]()
    told = {form.replace("{s}", claim.subject) for claim in claims for form in claim.asks}
    told |= {form for claim in claims for form in claim.who}
    values = {fact.value for fact in facts if fact.relation.kind in PEOPLE}
    subjects = {fact.subject for fact in facts}
    for _ in range(8):
        fact, kind = rng.choice(facts), rng.random()
        if rng.random() < 0.1 and fact.relation.subject in UNSAID:
            missing.append((rng.choice(UNSAID[fact.relation.subject]), fact.subject))
            continue
        if kind < 0.25:  # about somebody who isn't there, or of whom nothing is said
            others = sorted(values - subjects) if fact.relation.subject == "person" else []
            if others and fact.relation.kind not in PEOPLE and rng.random() < 0.5:
                missing.append((_form(source, fact.relation, fact.of), rng.choice(others)))
            else:
                name = near_name(source, fact.relation.subject, fact.subject, said) or unused(
                    source, fact.relation.subject, said
                )
                form = (
                    rng.choice(ABOUT)
                    if rng.random() < 0.2
                    else _form(source, fact.relation, fact.of)
                )
                if name:
                    missing.append((form, name))
        elif kind < 0.38:  # who has a value that nobody has, or that stands elsewhere
            if not fact.relation.who:
                continue
            alike = [
                f.value
                for f in facts
                if f.relation.kind == fact.relation.kind and not nearly(f.relation, fact.relation)
            ]
            if other_value := unused(source, fact.relation.kind, said):
                alike.append(other_value)
            if not alike:
                continue
            value = rng.choice(alike)
            form = rng.choice(fact.relation.who).replace("{k}", fact.of).replace("{v}", value)
            other = replace(fact, value=value)
            if value not in subjects and not told & set(other.claim().who):
                missing.append((form, ""))
        else:  # what is said of others, or of none
            like = rng.choice(facts)
            relation, of = like.relation, like.of
            common = [r for r in COMMON if r.subject == fact.relation.subject]
            if common and rng.random() < 0.4:
                relation = rng.choice(common)
                of = rng.choice(relation.of)
            elif rng.random() < 0.5 or relation.subject != fact.relation.subject:
                relation = rng.choice(OF_SUBJECT[fact.relation.subject])
                of = rng.choice(relation.of)
            if relation.kind in PEOPLE and fact.subject in values:
                continue  # who may be somebody's cousin
            asks = [form.replace("{k}", of) for form in relation.asks]
            own = [f.relation for f in facts if f.subject == fact.subject]
            is_told = any(nearly(each, relation) for each in own if each != relation)
            if not is_told and not told & {form.replace("{s}", fact.subject) for form in asks}:
                missing.append((rng.choice(asks), fact.subject))
    if not missing and (name := unused(source, facts[0].relation.subject, said)):
        missing.append((_form(source, facts[0].relation, facts[0].of), name))
    return missing


def _form(source: Source, relation: Relation, of: str) -> str:
    return source.rng.choice(relation.asks).replace("{k}", of)
