"""Held-out facts as documents and questions, for `llama rag eval`: none was seen in training.

    python examples/retrieval_facts.py facts.json
    llama rag eval facts.json --rerank likelihood,attention --answers

Each document says a few things of some people, places or things that no other document names. Every
question asks for one fact; of every six, one asks for what no document says.
"""

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python examples/retrieval_facts.py`

from examples.tiny_skills import Skills

# Names that are made of these are as strange to the model as those of real documents.
_FIRST = ("bel", "cor", "dan", "fer", "gal", "hol", "jor", "kel", "lor", "mar", "nor", "pel")
_LAST = ("by", "den", "field", "ford", "ham", "kin", "land", "ley", "mere", "sen", "ton", "wick")


def facts_file(count: int = 200, seed: int = 1) -> dict[str, Any]:
    """So many documents, a question about each, and a fifth as many that nothing answers."""
    rng = random.Random(seed)
    endings = ["".join(pair) for pair in itertools.product(_FIRST, _LAST)]
    skills = Skills(rng, endings, [], [], held_out=True, strange=0.7)
    documents: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    named: set[str] = set()

    def new_facts() -> list[Any]:
        facts = skills._some_facts(6)
        subjects = {fact.subject for fact in facts}
        if subjects & named:
            return []
        named.update(subjects)
        return facts

    while len(documents) < count:
        if facts := new_facts():
            number = len(documents)
            text = " ".join(fact.said(rng) for fact in facts)
            documents.append({"id": number, "text": text})
            fact = rng.choice(facts)
            answers = [fact.sentence, fact.value]
            question = fact.asked(rng).question
            queries.append(
                {"id": f"q{number}", "text": question, "document": number, "answers": answers}
            )
    while len(queries) < count + count // 5:
        if facts := new_facts():
            queries.append({"id": f"u{len(queries)}", "text": facts[0].asked(rng).question})
    return {"documents": documents, "queries": queries}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/retrieval_facts.py FILE")
    Path(sys.argv[1]).write_text(json.dumps(facts_file(), indent=1))
