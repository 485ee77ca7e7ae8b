"""Texts that are no prose: letters, scripts, notices, schedules, lists."""

from collections.abc import Callable

from examples.tiny_data.claims import Claim, Text, closed, sections
from examples.tiny_data.fact_lists import numbered, recipe, schedule, shopping, story
from examples.tiny_data.fact_sheets import records, table
from examples.tiny_data.fillers import DAYS, FOODS
from examples.tiny_data.turns import Source, capital

_FILE = sections("fact_first_person.txt")
FIRST = tuple(tuple(line.split(" | ")) for line in _FILE["i"])
GREETINGS, OPENINGS, ENDINGS = _FILE["greetings"], _FILE["openings"], _FILE["endings"]
CLOSINGS = _FILE["closings"]


def some(source: Source) -> Text:
    """A text of some type."""
    makers: tuple[Callable[[Source], Text], ...] = (
        *(table, records, letter, letter, script, script),
        *(hours, prices, schedule, recipe, numbered, shopping, story, story),
    )
    return source.rng.choice(makers)(source)


def _said_by(
    source: Source, speaker: str, names: str, count: int
) -> tuple[list[str], list[Claim], list[tuple[str, str]]]:
    """Sentences in which somebody tells of themselves."""
    rng, sentences, claims, missing = (
        source.rng,
        list[str](),
        list[Claim](),
        list[tuple[str, str]](),
    )
    chosen, once = list[tuple[str, ...]](), set[str]()
    for each in rng.sample(FIRST, count + 4):
        group = "pet" if each[0] == "animal" else each[0]
        if group not in once:
            chosen.append(each)
        if group in ("age", "phone", "language", "instrument", "pet", "job"):
            once.add(group)  # what else is of the kind nearly says the same
    for i, (kind, said, clause, questions) in enumerate(chosen):
        asks = tuple(questions.split(" / "))
        if i >= max(count, 1):
            missing.append((rng.choice(asks), speaker))
            continue
        value = source.fresh(kind, names)
        names += " " + value
        sentences.append(closed(said.replace("{v}", value)))
        full = closed(capital(clause.replace("{s}", speaker).replace("{v}", value)))
        claims.append(
            Claim(
                speaker, value, full, asks, (), True, kind in ("age", "time", "date", "phone"), kind
            )
        )
    return sentences, claims, missing


def letter(source: Source) -> Text:
    """A letter, an e-mail or a message; "I" is who signs."""
    rng = source.rng
    writer = source.pick("person")
    reader = source.fresh("person", writer)
    told, claims, missing = _said_by(source, writer, f"{writer} {reader}", rng.randint(1, 4))
    missing += [(rng.choice(claim.asks), reader) for claim in claims]
    body = (
        [rng.choice(OPENINGS)] * (rng.random() < 0.6)
        + told
        + [rng.choice(ENDINGS)] * (rng.random() < 0.5)
    )
    greeting = rng.choice(GREETINGS).replace("{r}", reader)
    closing = rng.choice(CLOSINGS).replace("{w}", writer)
    passage = f"{greeting}\n\n{' '.join(body)}\n\n{closing}"
    if rng.random() < 0.3:
        passage = (
            f"From: {writer}\nTo: {reader}\n"
            + rng.choice(("Subject: Hello\n\n", "Subject: News\n\n", "\n"))
            + passage
        )
    return Text([passage], claims, missing, is_laid_out=True)


def script(source: Source) -> Text:
    """Who says what."""
    rng = source.rng
    names, lines, claims, missing = (
        "",
        list[tuple[str, str]](),
        list[Claim](),
        list[tuple[str, str]](),
    )
    speakers = list[str]()
    for _ in range(rng.choice((2, 2, 3))):
        speakers.append(source.fresh("person", names + "."))
        names += " " + speakers[-1]
    for speaker in speakers:
        told, own, open_ = _said_by(source, speaker, names, rng.randint(1, 2))
        names += " " + " ".join(claim.value for claim in own)
        lines += [(speaker, sentence) for sentence in told]
        claims += own
        missing += open_
    rng.shuffle(lines)
    for speaker in speakers:
        if rng.random() < 0.3:
            lines.insert(
                0,
                (
                    speaker,
                    rng.choice(
                        (
                            "Hello!",
                            "Hi everyone!",
                            "Good morning.",
                            "How are you?",
                            "Nice to meet you.",
                        )
                    ),
                ),
            )
    told_asks = {(claim.subject, form) for claim in claims for form in claim.asks}
    for claim in claims:
        other = rng.choice([s for s in speakers if s != claim.subject])
        missing.append((rng.choice(claim.asks), other))
    missing = [(form, subject) for form, subject in missing if (subject, form) not in told_asks]
    mark = rng.choice(
        (
            "{}: {}",
            "{}: {}",
            "{}: {}",
            "{} - {}",
            '{} says: "{}"',
            '{}: "{}"',
            "<{}> {}",
            "[{}] {}",
            "**{}:** {}",
        )
    )
    order = [mark.format(speaker, sentence) for speaker, sentence in lines]
    return Text(["\n".join(order)], claims, missing, is_laid_out=True)


def hours(source: Source) -> Text:
    """When a place is open."""
    rng = source.rng
    place = source.pick("shop")
    days = sorted(rng.sample(DAYS, rng.randint(2, 5)), key=DAYS.index)
    claims, missing, lines = list[Claim](), list[tuple[str, str]](), list[str]()
    dash = rng.choice((" - ", "-", " to ", "–"))
    for day in days:
        if rng.random() < 0.15:
            lines.append(f"{day}: closed")
            asks = (
                f"When is {place} open on {{s}}?",
                f"Is {place} open on {{s}}?",
                f"What about {{s}}, is {place} open?",
            )
            claims.append(Claim(day, "closed", f"{capital(place)} is closed on {day}.", asks))
            continue
        opens, closes = (
            f"{rng.randint(6, 11)}:{rng.choice(('00', '15', '30', '45'))}",
            f"{rng.randint(13, 21)}:{rng.choice(('00', '15', '30', '45'))}",
        )
        lines.append(f"{day}: {opens}{dash}{closes}")
        claims.append(
            Claim(
                day,
                opens,
                f"{capital(place)} opens at {opens} on {day}.",
                (
                    f"When does {place} open on {{s}}?",
                    f"What time does {place} open on {{s}}?",
                    f"From when is {place} open on {{s}}?",
                ),
                only=True,
            )
        )
        claims.append(
            Claim(
                day,
                closes,
                f"{capital(place)} closes at {closes} on {day}.",
                (
                    f"When does {place} close on {{s}}?",
                    f"What time does {place} close on {{s}}?",
                    f"Until when is {place} open on {{s}}?",
                ),
                only=True,
            )
        )
    for day in DAYS:
        if day not in days:
            missing.append(
                (
                    rng.choice(
                        (
                            f"When does {place} open on {{s}}?",
                            f"When does {place} close on {{s}}?",
                            f"Is {place} open on {{s}}?",
                        )
                    ),
                    day,
                )
            )
    missing += [
        (f"{q} {{s}}?", place)
        for q in (
            "Who owns",
            "How much is a ticket for",
            "Where is",
            "How old is",
            "What is the phone number of",
        )
    ]
    title = rng.choice(("Opening hours", "Opening times:", "Hours", "We are open:", "Open"))
    return Text(
        [f"{capital(place)}\n{title}" + "\n" + "\n".join(lines)], claims, missing, is_laid_out=True
    )


def prices(source: Source) -> Text:
    """A menu, or what tickets cost."""
    rng = source.rng
    if rng.random() < 0.5:
        wares = rng.sample(FOODS, rng.randint(2, 6))
        title = rng.choice(
            ("Menu", "MENU", "Today's menu:", "Prices", "Price list", "On offer today")
        )
        said, asks = (
            "The {s} costs {v}.",
            (
                "How much is the {s}?",
                "How much does the {s} cost?",
                "What does the {s} cost?",
                "What is the price of the {s}?",
                "What do I pay for the {s}?",
            ),
        )
    else:
        wares = rng.sample(
            (
                "adults",
                "children",
                "students",
                "families",
                "groups",
                "dogs",
                "seniors",
                "members",
                "visitors",
                "teachers",
            ),
            rng.randint(2, 4),
        )
        title = rng.choice(
            ("Tickets", "Ticket prices", "Entry", "Entrance fees:", "Prices of tickets")
        )
        said, asks = (
            "A ticket for {s} costs {v}.",
            (
                "How much is a ticket for {s}?",
                "What does a ticket for {s} cost?",
                "How much do {s} pay?",
                "What do {s} pay?",
                "What is the price for {s}?",
            ),
        )
    unit = rng.choice(("{} dollars", "{} euros", "${}", "{} pounds", "€{}"))
    claims, missing, lines = list[Claim](), list[tuple[str, str]](), list[str]()
    amounts = rng.sample(range(2, 60), len(wares))
    mark = rng.choice(("{}: {}", "{} - {}", "{} ... {}", "- {}: {}", "| {} | {} |", "{} {}"))
    for ware, amount in zip(wares, amounts, strict=True):
        value = unit.format(amount)
        lines.append(mark.format(capital(ware), value))
        clause = said.replace("{s}", ware).replace("{v}", value)
        if ware in FOODS and ware.endswith("s"):
            clause = clause.replace("costs", "cost")
        claims.append(
            Claim(
                ware,
                value,
                capital(clause),
                tuple(_plural(ask, ware) for ask in asks),
                (f"What costs {value}?",) if ware in FOODS else (f"Who pays {value}?",),
                only=True,
            )
        )
    others = [
        w
        for w in (FOODS if wares[0] in FOODS else ("babies", "soldiers", "cyclists"))
        if not any(w in e or e in w for e in wares)
    ]
    missing += [(_plural(rng.choice(asks), other), other) for other in rng.sample(others, 3)]
    return Text([f"{title}\n" + "\n".join(lines)], claims, missing, is_laid_out=True)


def _plural(ask: str, ware: str) -> str:
    if ware in FOODS and ware.endswith("s"):
        return ask.replace("is the {s}", "are the {s}").replace("does the {s}", "do the {s}")
    return ask
