# /// script
# requires-python = ">=3.11"
# dependencies = ["haystack-ai==3.4.1", "jina-haystack==2.0.1"]
# ///
"""Haystack with `llama serve`: chat, streaming, an agent with a tool, answers from documents.

    llama serve params/tiny
    uv run examples/clients/haystack_client.py http://127.0.0.1:8000

The address is that of the server; a second argument names another model. uv installs the packages
above; with pip, install them and run this file with Python.
"""

import argparse
import operator
from typing import Annotated

from haystack import Document, Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.tools import tool
from haystack.utils import Secret
from haystack_integrations.components.rankers.jina import JinaRanker

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
FACTS = ["Tom lives in Lima.", "Clara is a doctor.", "The park opens at nine."]


@tool
def calculator(
    expression: Annotated[str, "Two whole numbers with +, - or * between them: 2 * 3"],
) -> str:
    """Calculates"""
    left, sign, right = expression.split()
    return str(OPERATORS[sign](int(left), int(right)))


def print_chunk(chunk: StreamingChunk) -> None:
    """Prints a part of an answer as it comes."""
    print(chunk.content or "", end="", flush=True)


def main() -> None:
    """Runs all four against the server at the URL that is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("model", nargs="?", default="tiny")
    arguments = parser.parse_args()
    base, key = f"{arguments.url}/v1", Secret.from_token("none")
    server = {"model": arguments.model, "api_base_url": base, "api_key": key}

    def chat() -> OpenAIChatGenerator:
        return OpenAIChatGenerator(generation_kwargs={"temperature": 0}, **server)

    print("chat:", chat().run([ChatMessage.from_user("What is 12 + 30?")])["replies"][0].text)

    print("stream: ", end="")
    chat().run([ChatMessage.from_user("Hello! My name is Tom.")], streaming_callback=print_chunk)
    print()

    agent = Agent(chat_generator=chat(), tools=[calculator])
    print("agent:", agent.run([ChatMessage.from_user("What is 23 * 17?")])["last_message"].text)

    store = InMemoryDocumentStore()
    documents = [Document(content=fact) for fact in FACTS]
    embedder = OpenAIDocumentEmbedder(progress_bar=False, **server)
    store.write_documents(embedder.run(documents)["documents"])
    template = "{% for document in documents %}{{ document.content }}\n{% endfor %}\n{{ question }}"
    pipeline = Pipeline()
    pipeline.add_component("embedder", OpenAITextEmbedder(**server))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
    ranker = JinaRanker(model=arguments.model, api_key=key, base_url=f"{base}/rerank", top_k=1)
    # What the embeddings find is reranked by how likely the model finds the question after it.
    pipeline.add_component("ranker", ranker)
    prompt = ChatPromptBuilder([ChatMessage.from_user(template)], required_variables="*")
    pipeline.add_component("prompt", prompt)
    pipeline.add_component("chat", chat())
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "ranker.documents")
    pipeline.connect("ranker.documents", "prompt.documents")
    pipeline.connect("prompt", "chat.messages")
    question = "Where does Tom live?"
    inputs = {
        "embedder": {"text": question},
        "ranker": {"query": question},
        "prompt": {"question": question},
    }
    result = pipeline.run(inputs, include_outputs_from={"ranker"})
    found = result["ranker"]["documents"][0].content
    print("answer:", result["chat"]["replies"][0].text, "| from:", found)


if __name__ == "__main__":
    main()
