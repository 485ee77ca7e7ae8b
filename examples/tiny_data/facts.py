"""Contexts of facts, and dialogs of questions about them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from examples.tiny_data import fact_texts, statements
from examples.tiny_data.claims import (
    ABOUT,
    TRUE,
    Claim,
    Text,
    asked,
    closed,
    noisy,
    she_or_he,
    unused,
    with_pronoun,
    without_s,
)
from examples.tiny_data.layouts import PARTS, laid_out, some_system
from examples.tiny_data.prose import PEOPLE, Fact, passages_of, prose, some_facts
from examples.tiny_data.relations import OF_SUBJECT, SUBJECTS
from examples.tiny_data.turns import Exhausted, Source, Turn, capital, dialog_of
from llama import Message


def turn(source: Source) -> Turn:
    """A text and a question about it in one message."""
    while True:
        text, turns = _questions(source, 1)
        dialog = laid_out(source, text, turns)
        if len(dialog) == 2 and len(dialog[0]["content"]) < 1800:
            return replace(turns[0], question=dialog[0]["content"])


def dialog(source: Source) -> list[Message]:
    """A text somewhere, and one to six questions about it."""
    rng = source.rng
    if rng.random() < 0.03:
        return dialog_of(some_system(source), _about_nothing(source))
    while True:
        text, turns = _questions(source, rng.choice((1, 1, 1, 2, 2, 3, 4, 6)))
        messages = laid_out(source, text, turns)
        if sum(len(message["content"]) for message in messages) < 2900:
            return messages


def alike(source: Source) -> list[Message]:
    """Two to five facts of one kind in a row, and questions about some of them: whose is whose."""
    rng, kind = source.rng, source.rng.choice((*SUBJECTS, "person", "person", "person"))
    relation = rng.choice(OF_SUBJECT[kind])
    of, names, facts = rng.choice(relation.of), ".", list[Fact]()
    for _ in range(rng.choice((2, 2, 3, 3, 4, 5))):
        subject = unused(source, kind, names)
        value = unused(source, relation.kind, f"{names} {subject}")
        if subject is None or value is None:
            raise Exhausted(f"no {kind} or {relation.kind} is left that is none of: {names}")
        names += f" {subject} {value}"
        facts.append(Fact(relation, subject, of, value, rng.choice(relation.says)))
    said = [fact.clause for fact in facts]
    text = Text(said, [fact.claim() for fact in facts], [])
    chosen = rng.sample(text.claims, rng.randint(1, len(facts)))
    turns = [question_about(source, claim, _who(text, claim), 0.25) for claim in chosen]
    if rng.random() < 0.25 and (other := unused(source, kind, names)):
        form = rng.choice(text.claims[0].asks)
        turns.insert(rng.randrange(len(turns) + 1), Turn.unknown(asked(source, form, other)))
    told = rng.choice((" ", " ", "\n", "\n- ")).join(said)
    return dialog_of(some_system(source), _asked_of(source, told, turns))


def question_about(source: Source, claim: Claim, who: Sequence[str], share: float) -> Turn:
    """A question for the claim's value, or with this chance for its subject if `who` has any."""
    rng = source.rng
    if who and rng.random() < share:
        return claim.turn(asked(source, rng.choice(who), ""), claim.subject)
    return claim.turn(asked(source, rng.choice(claim.asks), claim.subject))


def free(source: Source) -> list[Message]:
    """Two to six statements in which any words come together, and questions in the same words."""
    text, turns = _some_statements(source, source.rng.choice((1, 1, 2, 3, 4)))
    told = source.rng.choice((" ", " ", "\n")).join(text.passages)
    return dialog_of(some_system(source), _asked_of(source, told, turns))


def short_turn(source: Source) -> Turn:
    """A few statements and a question about them in one message."""
    text, turns = _some_statements(source, 1, most=3)
    return _asked_of(source, " ".join(text.passages), turns)[0]


def _some_statements(source: Source, count: int, most: int = 6) -> tuple[Text, list[Turn]]:
    text = statements.some(source, most)
    return text, _turns(source, text, count)


def _asked_of(source: Source, told: str, turns: list[Turn]) -> list[Turn]:
    """The turns, what is told before or after the first question."""
    rng, parts = source.rng, [told, turns[0].question]
    if rng.random() < 0.3:
        parts.reverse()
    first = replace(turns[0], question=rng.choice((" ", " ", "\n", "\n\n")).join(parts))
    return [first, *turns[1:]]


def text(source: Source) -> str:
    """Facts told three or four times, each time in other words and another order."""
    rng = source.rng
    facts = some_facts(source, rng.choice((4, 7, 10, 10)))
    parts = []
    for _ in range(rng.choice((3, 4))):
        facts = [
            replace(fact, form=rng.choice(fact.relation.says)) if rng.random() < 0.5 else fact
            for fact in rng.sample(facts, len(facts))
        ]
        passages = passages_of(source, facts)
        parts.append(rng.choice((" ", " ", "\n")).join(passages))
    return rng.choice(("\n\n", " ", "\n")).join(parts)


def _questions(source: Source, count: int) -> tuple[Text, list[Turn]]:
    """A text, and turns about it."""
    rng = source.rng
    kind = rng.random()
    if kind < 0.45:
        text = prose(source, rng.choice((1, 2, 3, 5, 7, 10, 10, 10)))
    elif kind < 0.7:
        text = statements.some(source)
    else:
        text = fact_texts.some(source)
    return text, _turns(source, text, count)


def _about_nothing(source: Source) -> list[Turn]:
    """Questions without a text."""
    facts = some_facts(source, 2)
    count = source.rng.choice((1, 1, 2))
    claims = [fact.claim() for fact in facts[:count]]
    return [Turn.unknown(asked(source, source.rng.choice(c.asks), c.subject)) for c in claims]


def _turns(source: Source, text: Text, count: int) -> list[Turn]:
    """Questions about a text, some of which follow from the one before."""
    rng, turns = source.rng, list[Turn]()
    left, last = rng.sample(text.claims, len(text.claims)), None
    asked_for = set[tuple[str, str]]()
    for _ in range(count):
        kind = rng.random()
        if last and rng.random() < 0.3 and (following := _following(source, text, last)):
            turns.append(following[0])
            last = following[1]
            continue
        if not left and (not text.missing or rng.random() < 0.6) and turns:
            break
        if not left and text.missing:
            kind = 0.0
        claim = left.pop() if left else rng.choice(text.claims)
        last = None
        if kind < 0.28 and text.missing:
            form, subject = rng.choice(text.missing)
            if (form, subject) in asked_for:
                continue
            asked_for.add((form, subject))
            turns.append(Turn.unknown(asked(source, form, subject)))
        elif (
            (kind < 0.32 and (turn := _about(source, text, claim)))
            or (kind < 0.40 and (turn := _yes_or_no(source, text, claim)))
            or (kind < 0.43 and (turn := _list(source, text)))
        ):
            turns.append(turn)
        elif kind < 0.53 and (forms := _who(text, claim)):
            turns.append(claim.turn(asked(source, rng.choice(forms), ""), claim.subject))
        elif (
            kind < 0.55
            and claim.kind
            and len(text.claims) < 8
            and (both := _corrected(source, text, claim))
        ):
            return turns + both
        else:
            turns.append(claim.turn(asked(source, rng.choice(claim.asks), claim.subject)))
            last = claim
    return turns


def _who(text: Text, claim: Claim) -> list[str]:
    """Questions for the subject that no other subject answers."""
    if claim.kind in PEOPLE and any(c.subject == claim.value for c in text.claims):
        return []
    others = {form for other in text.claims if other is not claim for form in other.who}
    return [form for form in claim.who if form not in others]


def _following(source: Source, text: Text, last: Claim) -> tuple[Turn, Claim | None] | None:
    """A question that only what was asked before makes clear."""
    rng = source.rng
    if last.person and rng.random() < 0.6:
        pronoun = she_or_he(last.subject)
        same = [c for c in text.claims if c.subject == last.subject and c is not last]
        open_ = [form for form, subject in text.missing if subject == last.subject]
        forms: list[tuple[str, Claim | None]] = [(form, c) for c in same for form in c.asks]
        forms += [(form, None) for form in open_]
        forms = [(form, c) for form, c in forms if with_pronoun(form, pronoun)]
        if not forms:
            return None
        form, claim = rng.choice(forms)
        question = asked(source, form, last.subject, pronoun)
        if rng.random() < 0.5:
            question = f"And {question[:1].lower()}{question[1:]}"
        return (claim.turn(question), claim) if claim else (Turn.unknown(question), None)
    alike = [c for c in text.claims if c.asks == last.asks and c.subject != last.subject]
    told = {c.subject for c in text.claims if c.asks == last.asks}
    others = [
        subject for form, subject in text.missing if form in last.asks and subject not in told
    ]
    subjects = [c.subject for c in alike] + others
    if not subjects:
        return None
    subject = rng.choice(subjects)
    article = "the " if any("the {s}" in form for form in last.asks) else ""
    question = noisy(
        source,
        rng.choice(
            ("What about {}?", "And {}?", "How about {}?", "And what about {}?", "And for {}?")
        ).format(article + subject),
        subject,
    )
    for claim in alike:
        if claim.subject == subject:
            return claim.turn(question), claim
    return Turn.unknown(question), None


def _about(source: Source, text: Text, claim: Claim) -> Turn | None:
    """A question for all that is said of a subject, which is told in the text's order."""
    told_of = [c for c in text.claims if c.subject == claim.subject]
    if text.is_laid_out:
        told_of.sort(key=lambda c: str(text).find(c.value))
    clauses = [c.clause for c in told_of]
    if not claim.kind or any(c.value == claim.subject for c in text.claims) or len(clauses) > 6:
        return None
    told = " ".join(clauses)
    question = noisy(source, source.rng.choice(ABOUT).replace("{s}", claim.subject), claim.subject)
    return Turn(question, told, sentence=told)


def _yes_or_no(source: Source, text: Text, claim: Claim) -> Turn | None:
    """Whether something is so."""
    rng, value = source.rng, claim.value
    if claim.clause.count(value) != 1 or not claim.kind or value in claim.subject:
        return None
    kind = rng.random()
    if kind < 0.65 and claim.only:
        others = [c.value for c in text.claims if c.kind == claim.kind and c.value != value]
        if new := unused(source, claim.kind, str(text)):
            others.append(new)
        value = rng.choice(others or [value])
    asked_clause = _with_value(claim, value)
    question = _is_it(source, claim, asked_clause)
    if kind >= 0.82:
        name = source.fresh("person", str(text)) if claim.person else ""
        if not name:
            return None
        return Turn.unknown(question.replace(claim.subject, name))
    yes = value == claim.value
    answer = f"{'Yes' if yes else 'No'}, {_inside(claim)}"
    return Turn(
        noisy(source, question, claim.subject), answer, "Yes." if yes else "No.", None, answer
    )


def _with_value(claim: Claim, value: str) -> str:
    """The clause with another value."""
    return closed(claim.clause.replace(claim.value, value).removesuffix(".") + ".")


def _inside(claim: Claim) -> str:
    """The clause after a comma."""
    clause, names = claim.clause, (claim.subject, claim.value)
    if any(name[:1].isupper() and clause.startswith(name) for name in names):
        return clause
    return clause[:1].lower() + clause[1:]


def _is_it(source: Source, claim: Claim, clause: str) -> str:
    """The clause as a question."""
    rng = source.rng
    rest = clause.removeprefix(claim.subject).removesuffix(".").split()
    if rng.random() < 0.6 and len(rest) > 1 and clause.startswith(f"{claim.subject} "):
        if rest[0] in ("is", "was", "can", "will"):
            return f"{capital(rest[0])} {claim.subject} {' '.join(rest[1:])}?"
        if verb := without_s(rest[0]):
            return f"Does {claim.subject} {verb} {' '.join(rest[1:])}?"
    inside = _inside(replace(claim, clause=clause)).removesuffix(".")
    form = rng.choice(TRUE)
    return capital(form.replace("{c}", inside).replace("{C}", capital(inside)))


def _list(source: Source, text: Text) -> Turn | None:
    """Who does something that two do."""
    rng = source.rng
    counts = Counter(form for claim in text.claims for form in claim.who)
    shared = [form for form, count in counts.items() if count == 2 and form.startswith("Who ")]
    if not shared:
        return None
    form = rng.choice(shared)
    one, two = (claim for claim in text.claims if form in claim.who)
    first, second = (c.clause.removeprefix(c.subject).split() for c in (one, two))
    if one.subject == two.subject or first != second or not first or first[0] == "'s":
        return None
    verb = without_s(first[0])
    if verb is None:
        return None
    answer = f"{one.subject} and {two.subject} {' '.join([verb, *first[1:]])}"
    few = f"{one.subject} and {two.subject}."
    return Turn(asked(source, form, ""), answer, None, few if few.count(" ") == 2 else None, answer)


def _corrected(source: Source, text: Text, claim: Claim) -> list[Turn] | None:
    """The user says that a value is another one, and asks for it."""
    rng = source.rng
    if claim.clause.count(claim.value) != 1 or claim.value in claim.subject:
        return None
    value = unused(source, claim.kind, str(text))
    if value is None:
        return None
    new = replace(claim, value=value, clause=_with_value(claim, value))
    said = rng.choice(PARTS["corrections"]).replace("{a}", new.clause)
    first = claim.turn(asked(source, rng.choice(claim.asks), claim.subject))
    noted = Turn(said, f"Thanks, I have noted that: {_inside(new)}")
    return [first, noted, new.turn(asked(source, rng.choice(claim.asks), claim.subject))]
