"""Questions of few words, and of children: "mia home?", "Where Mia live?", "boss of Mia?"."""

import random
import re

from examples.tiny_data.turns import capital, forms

_NOUN = re.compile(r"(?:What|Who|When|Where) (?:is|was) (.*)\?")
_OF_SUBJECT = re.compile(r"\{s\}'s ([a-z][\w -]*)|the ([a-z][\w -]*) of \{s\}")
_DOES = re.compile(r"(Where|What|When|Who|How many \w+|Which \w+) (does|did) \{s\} ([^{}]+)\?")
_IS = re.compile(r"(Where|Who|When|How old|How tall|How long|How big|How high) is \{s\}\?")
# Questions in few words instead of a whole one: what stands before " = ", whichever follows.
SHORT = {
    line.split(" = ")[0]: tuple(line.split(" = ")[1].split(" / "))
    for line in forms("""
        Where does {s} live? = {s} home? / home of {s}? / {s} lives where? / where {s} lives
        Where was {s} born? = {s} born where? / {s} birthplace? / birthplace of {s}
        Where does {s} come from? = {s} from where? / {s} comes from where? / {s} is from where?
        How old is {s}? = {s} age? / age of {s}? / {s} how old? / how old {s}? / {s}'s age = ?
        How tall is {s}? = {s} height? / height of {s}? / {s} how tall? / {s}'s height = ?
        How much does {s} weigh? = {s} weight? / weight of {s}? / {s} weighs what?
        How much does {s} cost? = {s} price? / price of {s}? / {s} how much? / cost of {s}?
        What does {s} cost? = {s} price? / price of {s}? / {s} how much? / {s} costs what?
        What does {s} work as? = {s} job? / job of {s}? / {s} works as what? / {s} profession?
        What does {s} do for a living? = {s} job? / job of {s}? / occupation {s}
        What is {s}'s phone number? = {s} phone? / phone {s}? / {s} phone number / number of {s}?
        What does {s} like to eat? = {s} favorite food? / {s} fav food? / favorite food of {s}?
        What does {s} like to drink? = {s} favorite drink? / {s} fav drink? / fav drink of {s}?
        Which color does {s} like best? = {s} favorite color? / {s} fav color? / fav color {s}
        When is {s}'s birthday? = {s} birthday? / birthday of {s}? / {s} has a birthday when?
        Who is {s} married to? = {s} married to who? / {s} is married to whom?
        Who wrote {s}? = author of {s}? / {s} author? / {s} by whom? / {s} who wrote it?
    """)
}


def clipped(rng: random.Random, form: str) -> str:
    """The question in fewer words, if there are some for it."""
    if form in SHORT:
        return rng.choice(SHORT[form])
    if (found := _NOUN.fullmatch(form)) and (of := _OF_SUBJECT.fullmatch(found[1])):
        noun = of[1] or of[2]
        ways = [capital(found[1]) + end for end in ("?", "", " = ?", ", please", " is what?")]
        if not noun.startswith(("name", "year", "reason", "date")):
            ways += [f"{{s}} {noun}?", f"{{s}} {noun}", f"{noun} of {{s}}?", f"the {noun} of {{s}}"]
        if form.startswith("Who is"):
            ways += [f"who's the {noun} of {{s}}", f"{{s}}'s {noun} is who?"]
        return rng.choice(ways)
    if found := _DOES.fullmatch(form):
        asking, aux, rest = found[1], found[2], found[3]
        ways = [f"{asking} {{s}} {rest}?", f"{asking.lower()} {{s}} {rest}"]
        if aux == "does":
            ways.append(f"{asking} do {{s}} {rest}?")
        return rng.choice(ways)
    if found := _IS.fullmatch(form):
        return rng.choice((f"{found[1]} {{s}}?", f"{{s}} is {found[1].lower()}?"))
    return form
