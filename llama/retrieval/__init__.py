"""Your documents: an index in one file, search, and answers that name what supports them.

`parsing` reads documents and `chunking` divides them; `search_terms` says what full-text search
sees, `text_vectors` makes vectors; `store` is what an index needs of its storage and `sqlite_store`
has it in one file. `attention_scores` and `passage_scores` rerank; `grounding` makes prompts of
passages and checks answers; `adding` gathers documents and `index_settings` is what an index
remembers; `index` puts them together. `rag_evaluation` measures it, `rag_commands` is `llama rag`.
"""

from llama.retrieval.adding import Added, AddError
from llama.retrieval.grounding import Answer, AnswerSentence, Explanation, Hit, Stage, Support
from llama.retrieval.index import Index
from llama.retrieval.store import Store
from llama.retrieval.text_vectors import EmbeddingServer

__all__ = [
    "AddError",
    "Added",
    "Answer",
    "AnswerSentence",
    "EmbeddingServer",
    "Explanation",
    "Hit",
    "Index",
    "Stage",
    "Store",
    "Support",
]
