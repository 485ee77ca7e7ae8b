"""Small jobs that need no conversation: classify a text, answer a question, translate.

    from llama.tasks import answer, classify, translate

    classify(llama, "The soup was cold.", ["positive", "negative"]).label
    answer(llama, "Where does Tom live?", "Tom lives in Lima.").text
    translate(llama, "Guten Morgen!", to="en").text

`classify` compares the likelihoods of labels and needs no training; `ClassifierHead` is trained on
labelled examples, and so is the adapter of `train_adapter`. A text gives one result, a list a list.
What runs goes through the model's engine in one call, so a result does not depend on the others.

The files follow each other: `task_requests` (what all share), `label_prompts` (the prompt that a
label answers), `classification`, `classifier_head`, `classifier_adapter`, `question_answering`,
`translation`, `task_files` (texts and examples from files), `task_commands` (`llama tasks`).
"""

from llama.tasks.classification import Classification, classify
from llama.tasks.classifier_adapter import adapter_prompt, train_adapter
from llama.tasks.classifier_head import ClassifierHead
from llama.tasks.label_prompts import LabelledText
from llama.tasks.question_answering import Answer, answer
from llama.tasks.translation import Translation, translate

__all__ = [
    "Answer",
    "Classification",
    "ClassifierHead",
    "LabelledText",
    "Translation",
    "adapter_prompt",
    "answer",
    "classify",
    "train_adapter",
    "translate",
]
