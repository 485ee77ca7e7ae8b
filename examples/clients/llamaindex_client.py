# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "llama-index-core==0.14.25",
#     "llama-index-llms-openai-like==0.8.1",
#     "llama-index-embeddings-openai-like==0.4.0",
#     "llama-index-postprocessor-jinaai-rerank==0.6.0",
# ]
# ///
"""LlamaIndex with `llama serve`: chat, streaming, an agent with a tool, answers from documents.

    llama serve params/tiny
    uv run examples/clients/llamaindex_client.py http://127.0.0.1:8000

The address is that of the server; a second argument names another model. uv installs the packages
above; with pip, install them and run this file with Python.
"""

import argparse
import asyncio
import operator

from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from llama_index.postprocessor.jinaai_rerank import JinaRerank

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
FACTS = ["Tom lives in Lima.", "Clara is a doctor.", "The park opens at nine."]


def calculator(expression: str) -> str:
    """Calculates two whole numbers with +, - or * between them: 2 * 3."""
    left, sign, right = expression.split()
    return str(OPERATORS[sign](int(left), int(right)))


def main() -> None:
    """Runs all four against the server at the URL that is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("model", nargs="?", default="tiny")
    arguments = parser.parse_args()
    base = f"{arguments.url}/v1"

    llm = OpenAILike(
        model=arguments.model,
        api_base=base,
        api_key="none",
        context_window=1024,  # GET /v1/models has it as max_model_len
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
    )
    print("chat:", llm.chat([ChatMessage("What is 12 + 30?")]).message.content)

    print("stream: ", end="")
    for chunk in llm.stream_chat([ChatMessage("Hello! My name is Tom.")]):
        print(chunk.delta, end="", flush=True)
    print()

    agent = FunctionAgent(tools=[calculator], llm=llm, streaming=False)

    async def ask() -> str:
        return str(await agent.run("What is 23 * 17?"))

    print("agent:", asyncio.run(ask()))

    embed = OpenAILikeEmbedding(model_name=arguments.model, api_base=base, api_key="none")
    index = VectorStoreIndex.from_documents([Document(text=f) for f in FACTS], embed_model=embed)
    # What the embeddings find is reranked by how likely the model finds the question after it.
    reranker = JinaRerank(model=arguments.model, base_url=base, api_key="none", top_n=1)
    prompt = PromptTemplate("{context_str}\n\n{query_str}")
    engine = index.as_query_engine(
        llm=llm, similarity_top_k=3, node_postprocessors=[reranker], text_qa_template=prompt
    )
    answer = engine.query("Where does Tom live?")
    print("answer:", answer, "| from:", answer.source_nodes[0].get_content())


if __name__ == "__main__":
    main()
