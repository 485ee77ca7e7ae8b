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

from examples.tiny_data.prose import Fact, passages_of, some_facts
from examples.tiny_data.turns import Source, capital

# Names that end with these are as strange to the model as those of real documents.
_PARTS = (
    """bel cor dan dor fer gal hol jar jor kel lem lor mar nor pel quin ran rin sol tam tol ven ver
    wil""".split(),
    "a an e en i in o on u un".split(),
    "bridge brook combe croft dale field ford garth gate low mere shaw thorpe well".split(),
)
ENDINGS = tuple("".join(parts) for parts in itertools.product(*_PARTS))


def facts_file(count: int = 200, seed: int = 1) -> dict[str, Any]:
    """So many documents, a question about each, and a fifth as many that nothing answers."""
    rng = random.Random(seed)
    source = Source(rng, ENDINGS, [], strange=1)
    documents: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    named: set[str] = set()

    def new_facts() -> list[Fact]:
        while True:
            facts = some_facts(source, 6)
            subjects = {_last_word(fact.subject) for fact in facts}
            others = {_last_word(fact.value) for fact in facts} & set(ENDINGS)
            if subjects <= set(ENDINGS) and not (subjects | others) & named:
                named.update(subjects | others)
                return facts

    for number in range(count):
        facts = new_facts()
        documents.append({"id": number, "text": " ".join(passages_of(source, facts))})
        fact = rng.choice(facts)
        query = {"id": f"q{number}", "text": _asked(rng, fact), "document": number}
        queries.append({**query, "answers": [fact.clause, fact.value]})
    for number in range(count, count + count // 5):
        queries.append({"id": f"u{number}", "text": _asked(rng, rng.choice(new_facts()))})
    return {"documents": documents, "queries": queries}


def _last_word(name: str) -> str:
    return name.lower().rpartition(" ")[2]


def _asked(rng: random.Random, fact: Fact) -> str:
    return capital(rng.choice(fact.claim().asks).replace("{s}", fact.subject))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/retrieval_facts.py FILE")
    Path(sys.argv[1]).write_text(json.dumps(facts_file(), indent=1))
