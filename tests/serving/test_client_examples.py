"""The programs of examples/clients, each with the packages that it names, against a real server."""

import os
import shlex
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

from llama.generation import Llama

CLIENTS = Path(__file__).parents[2] / "examples" / "clients"
QUESTION = "Where does Tom live?"
FACTS = ["Tom lives in Lima.", "Clara is a doctor.", "The park opens at nine."]


def dependencies(script: Path) -> list[str]:
    """What the comment at a script's top asks for (PEP 723)."""
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# /// script"
    toml = "\n".join(line.removeprefix("#") for line in lines[1 : lines.index("# ///")])
    return tomllib.loads(toml)["dependencies"]


def download(command: list[str | Path], **settings: object) -> None:
    """Runs what gets packages; skips the test where it can't."""
    text = shlex.join(map(str, command))
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, **settings)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{text} takes more than five minutes")
    if ran.returncode:
        pytest.skip(f"{text} fails: {(ran.stdout + ran.stderr)[:500]}")


def run(command: list[str | Path], **settings: object) -> dict[str, str]:
    """What a program prints: the text after each name."""
    ran = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, **settings)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return dict(line.split(": ", 1) for line in ran.stdout.splitlines())


def chat(llama: Llama, question: str) -> str:
    dialog = [{"role": "user", "content": question}]
    return llama.chat_completion([dialog], temperature=0)[0]["generation"]["content"]


def best_fact(llama: Llama) -> str:
    scores = llama.rerank(QUESTION, FACTS)
    return FACTS[scores.index(max(scores))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["langchain", "llamaindex", "haystack"])
def test_python(name: str, url: str, llama: Llama, tmp_path: Path) -> None:
    script = CLIENTS / f"{name}_client.py"
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = dependencies(script)
    download([python, "-m", "pip", "install", "-q", *wanted])
    environment = {**os.environ, "HAYSTACK_TELEMETRY_ENABLED": "False"}
    printed = run([python, script, url], env=environment)
    if name == "langchain":
        assert printed["answer"]
    else:
        answer, source = printed["answer"].split(" | from: ")
        assert source == best_fact(llama)
        assert answer == chat(llama, f"{source}\n\n{QUESTION}")
    assert printed["chat"] == chat(llama, "What is 12 + 30?")
    assert printed["stream"] == chat(llama, "Hello! My name is Tom.")
    assert "391" in printed["agent"]


def check_java(printed: dict[str, str], llama: Llama) -> None:
    assert printed["chat"] == chat(llama, "What is 12 + 30?")
    assert printed["stream"] == chat(llama, "Hello! My name is Tom.")
    assert "391" in printed["tools"]


@pytest.mark.slow
def test_java(url: str, llama: Llama) -> None:
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("a JDK is not installed")
    printed = run([java, CLIENTS / "LlamaClient.java", url])
    check_java(printed, llama)
    assert printed["embeddings"] == f"3 of size {llama.model.params.dim}"
    assert printed["rerank"] == best_fact(llama)


@pytest.mark.slow
def test_spring_ai(url: str, llama: Llama, tmp_path: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        pytest.skip("Maven is not installed")
    project = tmp_path / "spring_ai"
    shutil.copytree(CLIENTS / "spring_ai", project)
    download([maven, "-B", "-q", "dependency:resolve"], cwd=project)
    command = [maven, "-B", "-q", "compile", "exec:java", "-Dexec.mainClass=SpringAiClient"]
    check_java(run([*command, f"-Dexec.args={url}"], cwd=project), llama)
