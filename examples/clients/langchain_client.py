# /// script
# requires-python = ">=3.11"
# dependencies = ["langchain==1.5.2", "langchain-openai==1.7.4", "numpy==2.4.6"]
# ///
"""LangChain with `llama serve`: chat, streaming, an agent with a tool, answers from documents.

    llama serve params/tiny
    uv run examples/clients/langchain_client.py http://127.0.0.1:8000

The address is that of the server; a second argument names another model. uv installs the packages
above; with pip, install them and run this file with Python.
"""

import argparse
import operator

from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
FACTS = ["Tom lives in Lima.", "Clara is a doctor.", "The park opens at nine."]


@tool
def calculator(expression: str) -> str:
    """Calculates.

    Args:
        expression: Two whole numbers with +, - or * between them: 2 * 3.
    """
    left, sign, right = expression.split()
    return str(OPERATORS[sign](int(left), int(right)))


def main() -> None:
    """Runs all four against the server at the URL that is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("model", nargs="?", default="tiny")
    arguments = parser.parse_args()
    server = {"model": arguments.model, "base_url": f"{arguments.url}/v1", "api_key": "none"}

    chat = ChatOpenAI(temperature=0, **server)
    print("chat:", chat.invoke("What is 12 + 30?").text)

    print("stream: ", end="")
    for chunk in chat.stream("Hello! My name is Tom."):
        print(chunk.text, end="", flush=True)
    print()

    agent = create_agent(chat, [calculator])
    state = agent.invoke({"messages": [{"role": "user", "content": "What is 23 * 17?"}]})
    print("agent:", state["messages"][-1].text)

    # LangChain would send the ids of OpenAI's tokenizer; this has it send the text.
    embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **server)
    store = InMemoryVectorStore(embeddings)
    store.add_documents([Document(fact) for fact in FACTS])
    question = "Where does Tom live?"
    found = [document.page_content for document in store.similarity_search(question, k=3)]
    print("answer:", chat.invoke("\n".join([*found, "", question])).text)


if __name__ == "__main__":
    main()
