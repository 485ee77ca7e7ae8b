"""What the bundled model learns besides stories: dialogs made by a seeded generator.

    skills = Skills(random.Random(1), words, SMALL_TALK, stories)
    skills.facts()   # a list of messages, such as these two
    user: "Corvan lives in Oakport. Mia lives in Rome. Where is Mia's home?"
    assistant: "Mia lives in Rome."

Answering from facts in the context, short arithmetic, following a rule of the system prompt,
keeping a name through other talk, calling a calculator, and spelling. All that the assistant says
is to be learned, in each turn, as `dialog_document` does. Where an answer has one right form it
always has this one: a fact is a sentence, a sum is "34 + 28 = 62.", and what cannot be known
is "I don't know."

What is measured was never seen: one in ten names, towns, numbers, pairs of numbers, ... is kept
out of training (see `is_held_out`). The same code makes examples of those only, with
`held_out=True`: `exam` collects them and `score` marks a model's answers.
"""

from examples.tiny_skills.dialogs import Skills
from examples.tiny_skills.fillers import made_up_words
from examples.tiny_skills.forms import SMALL_TALK
from examples.tiny_skills.measure import exam, score

__all__ = ["SMALL_TALK", "Skills", "exam", "made_up_words", "score"]
