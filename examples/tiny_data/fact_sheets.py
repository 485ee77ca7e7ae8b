"""Tables and records of persons, things and places."""

import re

from examples.tiny_data.claims import Claim, Text, closed
from examples.tiny_data.turns import Source, capital, forms

# Labels of tables and records, what kind of filler stands there, and what else asks for it.
_PERSON = forms("""
    town | town | Where does {s} live?
    home town | town | Which town is {s} from?
    birthplace | town | Where was {s} born?
    office | town | In which town is {s}'s office?
    job | job | What does {s} do for a living?
    age | age | How old is {s}?
    hobby | hobby | What hobby does {s} have?
    phone | phone | What is {s}'s phone number?
    birthday | date | When is {s}'s birthday?
    start date | date | When does {s} start?
    room | number | Which room is {s} in?
    seat | number | Where does {s} sit?
    score | number | How many points does {s} have?
    language | language | Which language does {s} speak?
    favorite color | color | What color does {s} like best?
    favorite food | food | What does {s} like to eat best?
    instrument | instrument | Which instrument does {s} play?
    boss | person | Who is the boss of {s}?
    teacher | person | Who teaches {s}?
    contact | person | Who is the contact for {s}?
    shift | day | On which day is {s}'s shift?
    lunch break | time | When does {s} have lunch?
    salary | price | How much does {s} earn?
    pet | pet | What is {s}'s pet called?
""")
_THING = forms("""
    price | price | How much is {s}? / How much does {s} cost?
    color | color | What color is {s}?
    owner | person | Who owns {s}? / Who does {s} belong to?
    stock | number | How many are there of {s}? / How many of {s} are left?
    year | year | What year is {s} from?
    number | number | What number does {s} have?
    seller | person | Who sells {s}?
    delivery day | day | On which day does {s} arrive?
    shelf | number | On which shelf is {s}?
    length | length | How long is {s}?
    origin | town | Where does {s} come from?
""")
ATTRIBUTES = {
    "person": [tuple(line.split(" | ")) for line in _PERSON],
    "thing": [tuple(line.split(" | ")) for line in _THING],
    "shop": [
        tuple(line.split(" | "))
        for line in _THING
        if line.split(" | ")[0] in ("owner", "year", "number", "seller")
    ],
}
NAME = {
    "person": ("Name", "name", "Person", "Who", "Full name"),
    "thing": ("Item", "Product", "Thing", "item"),
    "shop": ("Place", "Name"),
}
LOOKUPS = forms("""
    What is {s}'s {l}?
    What is the {l} of {s}?
    What {l} does {s} have?
    What {l} is given for {s}?
    What {l} is listed for {s}?
    What's the {l} for {s}?
    Which {l} belongs to {s}?
    Look up the {l} of {s}.
    Give me the {l} of {s}.
    What does it say for {s} under {l}?
    Find {s}'s {l}.
    {s}'s {l}?
    {s}, {l}?
    Which {l} is next to {s}?
""")


def _bare(value: str) -> str:
    return re.sub(r"^(a|an|the) ", "", value)


def _sheet(
    source: Source, rows: int
) -> tuple[str, list[str], list[tuple[str, ...]], dict[tuple[str, str], str]]:
    """What rows of attributes are about, and the value of each subject and label, some left out."""
    rng = source.rng
    kind = rng.choice(("person", "person", "person", "thing", "shop"))
    subjects, names = list[str](), "."
    for _ in range(rows):
        subjects.append(_bare(source.fresh(kind, names)))
        names += f" {subjects[-1]} the {subjects[-1]}"
    attributes = rng.sample(ATTRIBUTES[kind], rng.randint(1, min(4, len(ATTRIBUTES[kind]))))
    cells = {}
    for label, value_kind, _ in attributes:
        for subject in subjects:
            value = _bare(source.fresh(value_kind, names))
            names += " " + value
            cells[subject, label] = value
    return kind, subjects, attributes, cells


def _sheet_claims(
    source: Source,
    kind: str,
    subjects: list[str],
    attributes: list[tuple[str, ...]],
    cells: dict[tuple[str, str], str],
) -> tuple[list[Claim], list[tuple[str, str]]]:
    """The claims of rows of attributes, and what they leave open."""
    rng, claims, missing = source.rng, list[Claim](), list[tuple[str, str]]()
    said = " ".join([f"{subject} the {subject}" for subject in subjects] + [*cells.values()])

    def asks(label: str, others: str) -> tuple[str, ...]:
        lookups = [form.replace("{l}", label) for form in rng.sample(LOOKUPS, 4)]
        ways = others.split(" / ") * 2 + lookups
        return tuple(
            capital(form.replace("{s}", "the {s}")) if kind != "person" else form for form in ways
        )

    for label, value_kind, others in attributes:
        ways = asks(label, others)
        for subject in subjects:
            value = cells.get((subject, label), "")
            if value in ("", "-", "?"):
                missing.append((rng.choice(ways), subject))
                continue
            start = f"{subject}'s {label}" if kind == "person" else f"The {label} of the {subject}"
            one = {"person": "", "thing": "item", "shop": "place"}[kind]
            is_only = list(cells.values()).count(value) == 1
            whose = f"Whose {label} is {value}?" if kind == "person" else ""
            question = whose or f"Which {rng.choice(('one', one))} has the {label} {value}?"
            who = (question,) if is_only else ()
            claims.append(
                Claim(
                    subject,
                    value,
                    closed(f"{start} is {value}."),
                    ways,
                    who,
                    kind == "person",
                    value_kind not in ("language", "hobby", "instrument", "color"),
                    value_kind,
                )
            )
        missing.append((rng.choice(ways), _bare(source.fresh(kind, said))))
    labels = {label for label, _, _ in attributes}
    for label, _, others in rng.sample(ATTRIBUTES[kind], min(3, len(ATTRIBUTES[kind]))):
        if not any(label in each or each in label for each in labels) and not (
            labels & {"town", "home town", "birthplace"} and "town" in others
        ):
            missing.append((rng.choice(asks(label, others)), rng.choice(subjects)))
    return claims, missing


def table(source: Source) -> Text:
    """Rows and columns; a cell is empty at times."""
    rng = source.rng
    kind, subjects, attributes, cells = _sheet(source, rng.randint(2, 5))
    if rng.random() < 0.25:
        cells[rng.choice([*cells])] = rng.choice(("-", "?"))
    claims, missing = _sheet_claims(source, kind, subjects, attributes, cells)
    head = [rng.choice(NAME[kind]), *(capital(label) for label, *_ in attributes)]
    rows = [[capital(s), *(cells[s, label] for label, *_ in attributes)] for s in subjects]
    way = rng.random()
    if way < 0.6:
        lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
        if rng.random() < 0.8:
            lines.insert(1, "|" + rng.choice((" --- |", "---|", ":---|")) * len(head))
    else:
        joint = rng.choice((" | ", ", ", ",", ";", "\t"))
        lines = [joint.join(row) for row in [head, *rows]]
    return Text(["\n".join(lines)], claims, missing, is_laid_out=True)


def records(source: Source) -> Text:
    """Lines of labels and values."""
    rng = source.rng
    kind, subjects, attributes, cells = _sheet(source, rng.randint(1, 4))
    for key in [*cells]:
        if len(cells) > 1 and rng.random() < 0.12:
            del cells[key]
    if not cells:
        return records(source)
    claims, missing = _sheet_claims(source, kind, subjects, attributes, cells)
    first, way = rng.choice(NAME[kind]), rng.random()
    passages = []
    for subject in subjects:
        own = [
            (label, cells[subject, label]) for label, *_ in attributes if (subject, label) in cells
        ]
        if way < 0.6:
            lines = [
                f"{first}: {capital(subject)}",
                *(f"{capital(label)}: {v}" for label, v in own),
            ]
            passages.append("\n".join(lines))
        elif way < 0.8:
            passages.append(
                f"{capital(subject)}\n" + "\n".join(f"- {label}: {v}" for label, v in own)
            )
        else:
            passages.append(
                f"{capital(subject)} - " + "; ".join(f"{label}: {v}" for label, v in own)
            )
    return Text(passages, claims, missing, is_laid_out=rng.random() < 0.8)
