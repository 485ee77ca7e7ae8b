"""The generator of dialogs."""

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from examples.tiny_skills.facts import (
    ABOUT,
    ASIDES,
    JOINTS,
    NAMED,
    NAMED_ASKS,
    NAMED_NOUNS,
    RELATIONS,
    SUBJECTS,
    SYSTEM_LAYOUTS,
    TOLD_LAYOUTS,
    TOLD_REPLY,
    USER_LAYOUTS,
    Fact,
    Turn,
)
from examples.tiny_skills.fillers import (
    COUNTED,
    FILLERS,
    NAMES,
    SHARED,
    is_held_out,
    is_held_out_pair,
    with_end,
)
from examples.tiny_skills.forms import (
    PROBLEMS,
    RULES,
    SHORT_TALK,
    SPELL_REQUESTS,
    STORY_REQUESTS,
    SUMS,
    TELLINGS,
)
from examples.tiny_skills.tools import (
    CALCULATORS,
    OFFER_SYSTEMS,
    OTHERS,
    SYSTEM_OFFER,
    USER_OFFER,
    call,
    calls_for,
    ends_with_number,
    evaluate,
    offer,
)
from llama import Message

Question = Literal["known", "unknown", "about"]


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
    strange   the share of `NAMES` that end with one of `words`. Names that are always of the same
              few hundred come to be chosen among those, and one that is none of them is misspelled
    shares    how many questions about facts, of 20, are of each kind
    operators of sums, each as often as it occurs
    """

    rng: random.Random
    words: Sequence[str]
    talk: Sequence[tuple[Sequence[str], Sequence[str]]]
    stories: Sequence[str]
    held_out: bool = False
    strange: float = 0.0
    shares: Mapping[Question, int] = field(
        default_factory=lambda: {"known": 11, "unknown": 5, "about": 4}
    )
    operators: str = "+++---*"

    def facts(self) -> list[Message]:
        """Facts in the system prompt or in a message, and one to eight questions about them."""
        if self.rng.random() < 0.03:
            question = self._some_facts()[0].asked(self.rng).question  # about nothing at all
            return dialog_of(self._system(), [Turn.unknown(question)])
        # Few facts are learned from first, and the more questions, the more of each text.
        count, most = self.rng.choice((1, 2, 4, 6, 8)), self.rng.choice((3, 5, 9))
        return self.asked(count, most=most).dialog

    def retold(self) -> str:
        """Facts told four times, each time in another order: a text, no dialog.

        To continue it takes what answers take, to look up what was said of whom, and nothing else:
        learned first, it makes the answers learnable.
        """
        rng, facts, same = self.rng, self._some_facts(), self.rng.random() < 0.5
        told = [fact for _ in range(4) for fact in rng.sample(facts, len(facts))]
        return " ".join(fact.sentence if same else fact.said(rng) for fact in told)

    def sums(self) -> list[Message]:
        """One to five sums of all kinds, a few of them too hard."""
        return dialog_of(self._system(), self._some(self._any_sum, 5))

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
        return dialog_of(self._system(), turns)

    # Fillers and other small parts.

    def pick(self, kind: str) -> str:
        """A filler of a kind, from this side of the split."""
        while True:
            filler = FILLERS[kind](self.rng)
            if kind in NAMES and self.strange and self.rng.random() < self.strange:
                filler = with_end(filler, self.rng.choice(self.words))
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

    def asked(self, count: int, last: Question | None = None, most: int = 9) -> Example:
        """`count` questions about two to `most` facts, the last one of the kind `last`."""
        first, *kinds = self._some_kinds(count)
        passages, turns = self._questions([*kinds, last or first], most)
        if self.rng.random() < 0.1:
            told = self.rng.choice(TOLD_LAYOUTS).format(c=" ".join(passages))
            return example_of(self._system(), [Turn(told, TOLD_REPLY), *turns])
        return example_of(*self._laid_out(passages, turns))

    def _some_kinds(self, count: int) -> list[Question]:
        return self.rng.choices([*self.shares], [*self.shares.values()], k=count)

    def _questions(self, kinds: Sequence[Question], most: int = 9) -> tuple[list[str], list[Turn]]:
        """Passages of text, and questions about them, as many as there are facts at most."""
        choices = [kind == "unknown" for kind in kinds]
        of_story = "about" not in kinds and self.rng.random() < 0.1
        if of_story and (found := self._story_questions(choices)):
            return found
        facts = self._some_facts(most)
        passages = self._passages(facts)
        text = "\n".join(passages)
        known = self.rng.sample(facts, len(facts))
        turns = list[Turn]()
        for kind in kinds[-len(facts) :]:
            if kind == "unknown":
                turn = self._unknown(facts, text)
            elif kind == "about":
                turn = self._about(self.rng.choice(facts).subject, facts)
            else:
                turn = self._known(known.pop())
            turns.append(replace(turn, question=self._sloppy(turn.question)))
        return passages, turns

    def _some_facts(self, most: int = 9) -> list[Fact]:
        """Two to `most` facts (or one, where there are no more), most of a few relations."""
        rng, facts, names = self.rng, list[Fact](), "."
        for kind in dict.fromkeys(rng.choices(SUBJECTS, k=2)):
            subjects = list[str]()
            for _ in range(rng.randint(1, 4)):
                if subject := self._fresh(kind, names):
                    names += f" {subject}"
                    subjects.append(subject)
            if not subjects:  # too few fillers of this kind
                continue
            relations = [relation for relation in RELATIONS if relation.subject == kind]
            for relation in rng.sample(relations, rng.randint(1, min(4, len(relations)))):
                of, values = rng.choice(relation.of), "."
                told = rng.choice((len(subjects), rng.randint(1, len(subjects))))
                for subject in rng.sample(subjects, told):
                    value = self._fresh(relation.kind, names + values)
                    if relation.kind == kind and rng.random() < 0.3:  # one whom more is said of
                        value = rng.choice(subjects)
                    if value and value != subject and value not in values:
                        values += f" {value}"
                        facts.append(Fact(relation, subject, of, value))
                if relation.kind in ("person", "pet"):
                    names += values
        if not facts:  # too few fillers of one kind
            return self._some_facts(most)
        return rng.sample(facts, min(len(facts), rng.randint(2, most)))

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

    def _about(self, subject: str, facts: list[Fact]) -> Turn:
        """A question for all that is said of a subject, which is told in the text's order."""
        told = " ".join(fact.sentence for fact in facts if fact.subject == subject)
        return Turn(self.rng.choice(ABOUT).format(subject), told, sentence=told)

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
                if subject and rng.random() < 0.2 and subject not in named:
                    return Turn.unknown(rng.choice(ABOUT).format(subject))
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
                turns.append(Turn(question, sentence, name, name, sentence))
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
        kind, op = self.rng.random(), self.rng.choice(self.operators)
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
        return example_of(self._system(), [*turns, last])

    def styled(self) -> Example:
        """Questions of all kinds, and a rule of style that all answers follow."""
        rng = self.rng
        while True:
            rule = rng.choice(RULES)
            x = self.pick(rng.choice(("exclamation", "person")))
            passages = list[str]()
            if rng.random() < 0.4:
                passages, turns = self._questions(self._some_kinds(rng.randint(1, 3)))
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
        example = example_of(system, turns)
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
                messages += dialog_of("", [turn])
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
            return Turn(self.rng.choice(STORY_REQUESTS[:3]), story, free=True)
        if kind < 0.35:
            passages, turns = self._questions(self.rng.choices(("known", "unknown"), (3, 1)))
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


def dialog_of(system: str, turns: Iterable[Turn]) -> list[Message]:
    """The messages of a system prompt, if there is one, and turns."""
    dialog = list[Message]()
    if system:
        dialog.append({"role": "system", "content": system})
    for turn in turns:
        dialog.append({"role": "user", "content": turn.question})
        dialog.append({"role": "assistant", "content": turn.answer})
    return dialog


def example_of(system: str, turns: Iterable[Turn]) -> Example:
    """Only the very same answer is right."""
    dialog = dialog_of(system, turns)
    return Example(dialog, lambda answer: answer == dialog[-1]["content"])
