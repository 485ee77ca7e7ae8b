"""`llama chat` and `llama run` as they are typed, piped and interrupted."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai_stand_in import Handler, chunk, serving
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llama.serving.chat_session import DEFAULTS
from llama.serving.terminal_commands import COMMANDS
from llama.serving.terminal_input import is_continued, is_open, terminal_reader, unquoted

ROOT = Path(__file__).parents[2]
TINY = ROOT / "params" / "tiny"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))
    for name in ("LLAMA_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Puts bytes into standard input, the file descriptor and Python's stream."""
    saved = os.dup(0)

    def put(data: bytes) -> None:
        (tmp_path / "stdin").write_bytes(data)
        file = (tmp_path / "stdin").open(encoding="utf-8")
        os.dup2(file.fileno(), 0)
        monkeypatch.setattr(sys, "stdin", file)

    yield put
    os.dup2(saved, 0)
    os.close(saved)


@pytest.fixture
def chat(run_command: Command, stdin: Callable[[bytes], None]) -> Callable[..., list[str]]:
    """Types lines into `llama chat`; returns what it prints."""

    def typed(*lines: str, flags: tuple[str, ...] = ("--temperature", "0")) -> list[str]:
        stdin("".join(f"{line}\n" for line in lines).encode())
        code, out, err = run_command("chat", TINY, *flags)
        assert (code, err) == (0, "")
        return out.splitlines()

    return typed


def test_a_question_in_a_pipe(run_command: Command, stdin: Callable[[bytes], None]) -> None:
    stdin(b"What is 47 + 36?\n")
    code, out, err = run_command("run", TINY, "--temperature", "0")
    assert (code, out, err) == (0, "47 + 36 = 83.\n", "")


def test_a_question_as_an_argument(run_command: Command) -> None:
    code, out, err = run_command("run", TINY, "What is 47 + 36?", "--temperature", "0")
    assert (code, out, err) == (0, "47 + 36 = 83.\n", "")


def test_a_pipe_and_an_argument_are_one_question(
    run_command: Command, stdin: Callable[[bytes], None]
) -> None:
    stdin("\ufeffMia lives in Oslo. Tom lives in Lima.\n".encode())
    code, out, err = run_command("run", TINY, "Where does Tom live?", "--temperature", "0")
    assert (code, out, err) == (0, "Tom lives in Lima.\n", "")


def test_statistics_and_a_cut_are_on_standard_error(run_command: Command) -> None:
    words = ["run", TINY, "Tell me a story.", "--max_gen_len", "5", "--stats", "--seed", "3"]
    code, out, err = run_command(*words)
    assert code == 0
    assert len(out.splitlines()) == 1
    cut, statistics = err.splitlines()
    assert cut == "(cut after 5 tokens: max_gen_len)"
    assert re.fullmatch(
        r"prompt 19 tokens \(0 from the prefix store\), first token after [\d.]+ s, "
        r"answer 5 tokens, [\d.]+ tokens/s, seed 3",
        statistics,
    )


def test_a_context_that_is_full_is_said(run_command: Command) -> None:
    code, _, err = run_command("run", TINY, "Tell me a story.", "--max_seq_len", "32")
    assert (code, err) == (0, "(cut: the context of 32 tokens is full)\n")


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (b"", (), 'no question: echo "..." | llama run MODEL'),
        (b" \n", (), "no question"),
        (b"\xff", (), "standard input is not UTF-8 text"),
        (b"", (" ",), "the question is empty"),
        (b"hi " * 1000, (), "but the context is 1024"),
        (b"hi", ("--top_p", "2"), "top_p must be between 0 and 1"),
        (b"hi", ("--api_key", "x"), "--api_key is for a server: give its --url"),
        (b"hi", ("--url", "http://127.0.0.1:9", "--quantize", "int8"), "--quantize is for a model"),
        (b"hi", ("--url", "nowhere"), "--url nowhere should begin with http"),
        (b"hi", ("--stop", ""), "stop strings must not be empty"),
    ],
)
def test_wrong_input_of_run(
    data: bytes,
    arguments: tuple[str, ...],
    message: str,
    run_command: Command,
    stdin: Callable[[bytes], None],
) -> None:
    stdin(data)
    code, out, err = run_command("run", TINY, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_model_that_is_not_there(run_command: Command, stdin: Callable[[bytes], None]) -> None:
    stdin(b"hi")
    for command in ("run", "chat"):
        code, out, err = run_command(command, "nowhere/at/all")
        assert (code, out) == (1, "")
        assert "nowhere/at/all" in err


def test_several_processes_are_refused(
    run_command: Command, stdin: Callable[[bytes], None]
) -> None:
    stdin(b"hi")
    code, out, err = run_command("run", TINY, WORLD_SIZE="2")
    assert (code, out) == (1, "")
    assert "llama serve" in err


def test_a_question_to_a_server(run_command: Command, stdin: Callable[[bytes], None]) -> None:
    stdin(b"hi")
    with serving(key="secret") as server:
        for flags, env in (
            (["--api_key", "secret"], {}),
            ([], {"LLAMA_RUN_API_KEY": "secret"}),
            ([], {"LLAMA_API_KEY": "secret"}),
            ([], {"OPENAI_API_KEY": "secret"}),
        ):
            code, out, err = run_command("run", "--url", server.url, *flags, **env)
            assert (code, out, err) == (0, "Hello, 世界\u2028!\n", "")
            stdin(b"hi")
        code, out, err = run_command("run", "big", "--url", server.url, "--api_key", "secret")
        assert (code, out) == (1, "")
        assert err.endswith("has no model 'big'; there are tiny\n")
        stdin(b"hi")
        code, _, err = run_command("run", "--url", server.url)
        assert code == 1
        assert "401: the key is wrong" in err
    stdin(b"hi")
    code, _, err = run_command("run", "--url", server.url)
    assert code == 1
    assert err.startswith(f"error: no server answers at {server.url}/v1")


def test_an_error_of_a_server_in_mid_answer(
    run_command: Command, stdin: Callable[[bytes], None]
) -> None:
    def answer(handler: Handler, body: dict) -> None:
        handler.begin_stream()
        handler.write_text("Once")
        handler.write_event({"error": {"message": "out of memory"}})
        handler.end_stream()

    stdin(b"hi")
    with serving(answer) as server:
        code, out, err = run_command("run", "--url", server.url)
        assert (code, out) == (1, "Once")
        assert err == f"error: {server.url}/v1: out of memory\n"
        stdin(b"hi\n/save a.json\n")
        code, out, err = run_command("chat", "--url", server.url)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "Once",
        f"error: {server.url}/v1: out of memory",
        "error: there is nothing to save yet",
    ]


def test_an_answer_without_text(run_command: Command, stdin: Callable[[bytes], None]) -> None:
    def answer(handler: Handler, body: dict) -> None:
        handler.begin_stream()
        handler.write_event(chunk({}, "stop"))
        handler.write_event({"choices": [], "usage": {"completion_tokens": 0}})
        handler.end_stream()

    stdin(b"hi")
    with serving(answer) as server:
        assert run_command("run", "--url", server.url) == (0, "\n", "(an empty answer)\n")


def test_a_closed_pipe_is_silent() -> None:
    """As in `llama run params/tiny "..." | head -c 4`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llama", "run", str(TINY), "Tell me a story.", "--temperature=0"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(4) == b"Once"
    process.stdout.close()
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (141, b"")


def test_turns_and_commands(chat: Callable[..., list[str]]) -> None:
    lines = chat(
        "My name is Clara.",
        "What is my name?",
        "/undo",
        "/again",
        "/clear",
        "What is my name?",
    )
    assert lines == [
        lines[0],
        "Your name is Clara.",
        "removed 'What is my name?' and its answer",
        lines[0],
        "the dialog is empty",
        lines[5],
    ]
    assert "Clara" in lines[0]
    assert "Clara" not in lines[5]


def test_system(chat: Callable[..., list[str]]) -> None:
    lines = chat(
        "/system",
        "/system Answer in capital letters.",
        "How are you?",
        "/clear",
        '/system """Facts:',
        'Tom lives in Lima."""',
        "Where does Tom live?",
        "/system off",
    )
    assert lines == [
        "system message: none",
        "system message: Answer in capital letters.",
        lines[2],
        "the dialog is empty but for the system message",
        "system message: Facts:",
        "Tom lives in Lima.",
        "Tom lives in Lima.",
        "system message: none",
    ]
    assert lines[2].isupper()
    assert chat("How are you?", flags=("--system", "Answer in capital letters.")) != []


def test_save_and_load(chat: Callable[..., list[str]], tmp_path: Path) -> None:
    file = tmp_path / "my chat.json"
    lines = chat("/system be kind", "Hi!", f"/save {file}", f"/load {file}", "/again")
    hello = lines[1]
    assert lines == [
        "system message: be kind",
        hello,
        f"3 messages are in {file}",
        "(system) be kind",
        ">>> Hi!",
        *[hello] * 2,
    ]
    assert [m["role"] for m in json.loads(file.read_text())] == ["system", "user", "assistant"]
    assert chat("Hi!", f"/save {file}")[1] == (
        f"error: {file} exists already; choose another name or remove it"
    )
    assert chat(f"/load {tmp_path}/no.json") == [
        f"error: {tmp_path}/no.json: No such file or directory"
    ]


def test_a_dialog_with_calls_is_shown_whole(chat: Callable[..., list[str]], tmp_path: Path) -> None:
    function = {"name": "calculator", "arguments": '{"expression": "23 * 17"}'}
    dialog = [
        {"role": "user", "content": "What is 23 * 17?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]},
        {"role": "tool", "content": 391, "tool_call_id": "1"},
    ]
    (tmp_path / "chat.json").write_text(json.dumps(dialog))
    assert chat(f"/load {tmp_path}/chat.json", "/again", "/undo") == [
        ">>> What is 23 * 17?",
        '{"name": "calculator", "parameters": {"expression": "23 * 17"}}',
        "(tool) 391",
        "23 * 17 = 391.",
        "removed 'What is 23 * 17?' and its answer",
    ]


def test_set(chat: Callable[..., list[str]]) -> None:
    lines = chat(
        "/set",
        "/set temperature",
        "/set temperature 0.25",
        "/set top_k=7",
        '/set stop ["a", "b"]',
        "/set temperature default",
        "/set temprature 1",
        "/set temprature",
        "/set temperature hot",
        flags=(),
    )
    assert [line.split()[0] for line in lines[: len(DEFAULTS)]] == list(DEFAULTS)
    assert [line.rstrip() for line in lines[len(DEFAULTS) :]] == [
        "temperature  0.6 (default)",
        "temperature  0.25",
        "top_k  7",
        'stop  ["a", "b"]',
        "temperature  0.6 (default)",
        "error: unknown setting 'temprature'; did you mean temperature?",
        "error: unknown setting 'temprature'; did you mean temperature?",
        "error: temperature must be a number, got 'hot' (str)",
    ]


def test_settings_count(chat: Callable[..., list[str]]) -> None:
    assert chat("/set max_gen_len 3", "How do you spell sunflower?")[1:] == [
        "S-U",
        "(cut after 3 tokens: max_gen_len)",
    ]


def test_tokens(chat: Callable[..., list[str]]) -> None:
    lines = chat("/tokens", "//<|eot_id|>猫", "/tokens")
    assert lines[0] == "error: there is no message yet"
    shown = "\n".join(lines[2:])
    assert shown.startswith("1792 <|begin_of_text|>\n1798 <|start_header_id|>")
    assert "104 <0xAB>=猫" in shown
    assert shown.count("1801 <|eot_id|>") == 2  # the typed one is text
    assert re.fullmatch(r"\d+ tokens, of a context of 1024", lines[-1])


def test_stats(chat: Callable[..., list[str]]) -> None:
    lines = chat("/stats", "/stats on", "Hi!", "/stats off", "Hi!", "/stats", "/stats maybe")
    assert lines[0] == "error: there is no answer yet"
    assert lines[1] == "statistics after each answer: on"
    assert lines[3].startswith("prompt 15 tokens (0 from the prefix store), first token after")
    assert lines[4] == "statistics after each answer: off"
    assert lines[6].startswith("prompt ")
    assert lines[7] == "error: write /stats, /stats on or /stats off, not 'maybe'"


def test_help_names_every_command(chat: Callable[..., list[str]]) -> None:
    shown = "\n".join(chat("/help"))
    assert all(f"/{name}" in shown for name in COMMANDS)
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert chat("/?") == shown.splitlines()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("/hlep", "unknown command /hlep; did you mean /help? (a message that begins with a slash"),
        ("/xyzzy", "unknown command /xyzzy; there are /system, /set"),
        ("/", "unknown command /; there are"),
        ("/usr/bin/env is what?", "unknown command /usr/bin/env; "),
        ("/undo", "there is no question yet to undo"),
        ("/undo 3", "/undo takes nothing after it, got '3'"),
        ("/again", "there is no question yet to answer again"),
        ("/save", "/save needs FILE"),
        ("/save chat.txt", "there is nothing to save yet"),
        ("/load", "/load needs FILE"),
    ],
)
def test_wrong_commands(typed: str, message: str, chat: Callable[..., list[str]]) -> None:
    lines = chat(typed, "/bye", "never read")
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize("last", ["/bye", "/exit", "/quit"])
def test_the_end(last: str, chat: Callable[..., list[str]]) -> None:
    assert chat(last, "Hi!") == []
    assert chat("", "  ", '""" """') == []


def test_a_message_that_begins_with_a_slash(chat: Callable[..., list[str]]) -> None:
    lines = chat("//tmp", "/save chat.txt", "/tokens")
    assert lines[1].startswith("error: chat.txt should end in .json")
    assert " '/t'" in "\n".join(lines) or " '/'" in "\n".join(lines)


def test_a_dialog_that_does_not_fit_any_more(chat: Callable[..., list[str]]) -> None:
    lines = chat("hi " * 600, "Hi!", "What is 47 + 36?", "/undo", flags=("--max_seq_len", "60"))
    assert lines[0].startswith("error: the prompt has ")
    assert "but the context is 60 (max_seq_len)" in lines[0]


def test_control_characters_of_an_answer(
    run_command: Command, stdin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gets them as they are; a terminal would obey them."""

    def answer(handler: Handler, body: dict) -> None:
        handler.begin_stream()
        handler.write_text("a\x1b[2Jb\n")
        handler.write_event(chunk({}, "stop"))
        handler.end_stream()

    with serving(answer) as server:
        stdin(b"hi\n")
        assert run_command("chat", "--url", server.url)[1] == "a\x1b[2Jb\n"
        stdin(b"hi\n")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        out = run_command("chat", "--url", server.url)[1]
    assert "a\\x1b[2Jb\n" in out


# How lines are read.


def test_when_a_message_goes_on() -> None:
    assert [is_open(text) for text in ('"""', '"""a', '"""a"""', '"""a"""\n', "a", '/system """')]
    assert [is_open(t) for t in ('"""', '"""a', '/system """a')] == [True] * 3
    assert [is_open(t) for t in ('"""a"""', '"""a\n"""\n', "a", 'a """', "/set x")] == [False] * 5
    assert [is_continued(t) for t in ("a\\", "\\", "a\\\\", "a", "")] == [True, True] + [False] * 3
    assert [unquoted(t) for t in ('"""\na\n\nb\n"""', ' """a"""', '"""', "a", '"""""')] == [
        *("a\n\nb", "a", '"""', "a", '"""""')
    ]


def test_lines_from_a_pipe(chat: Callable[..., list[str]], tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    chat("one\\", "two", '"""', "three ", "", 'four"""', f"/save {file}", '"""five', flags=())
    asked = [m["content"] for m in json.loads(file.read_text()) if m["role"] == "user"]
    assert asked == ["one\ntwo", "three \n\nfour"]


@pytest.fixture
def keys() -> Callable[[str], list[str]]:
    """What `terminal_reader` reads from keys, up to Ctrl-D; "^C" for Ctrl-C without a text."""

    def read(text: str) -> list[str]:
        messages = []
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text(text + "\x04")
            reader = terminal_reader({n: c.argument for n, c in COMMANDS.items()}, DEFAULTS)
            while True:
                try:
                    messages.append(reader())
                except KeyboardInterrupt:
                    messages.append("^C")
                except EOFError:
                    return messages

    return read


@pytest.mark.parametrize(
    ("typed", "messages"),
    [
        ("hi\r", ["hi"]),
        ("hi\rthere\r", ["hi", "there"]),
        ("one\\\rtwo\r", ["one\ntwo"]),
        ("one\\\\\r", ["one\\\\"]),
        ("one\x1b\rtwo\r", ["one\ntwo"]),
        ('"""\rone\r\rtwo"""\r', ['"""\none\n\ntwo"""']),
        ("\x1b[200~one\n two \\\nthree\x1b[201~\r", ["one\n two \\\nthree"]),
        ("\x1b[200~one\ntwo\n\x1b[201~!\r", ["one\ntwo\n!"]),
        ("你好, 世界\r", ["你好, 世界"]),
        ("\x03", ["^C"]),
        ("half\x03hi\r", ["", "hi"]),
        ("/und\t\r", ["/undo "]),
        ("/set temp\t0.2\r", ["/set temperature 0.2"]),
        ("//und\t\r", ["//und"]),
    ],
)
def test_keys(typed: str, messages: list[str], keys: Callable[[str], list[str]]) -> None:
    assert keys(typed) == messages


def test_files_are_completed(keys: Callable[[str], list[str]], tmp_path: Path) -> None:
    (tmp_path / "chat one.json").touch()
    assert keys(f"/load {tmp_path}/ch\t\r") == [f"/load {tmp_path}/chat one.json"]


def test_the_history_is_kept_and_private(
    keys: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys("secret\r")
    file = tmp_path / "cache" / "chat_history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "\n+secret\n" in file.read_text()
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "file" / "no folder"))
    assert keys("one\r") == ["one"]


# In a real terminal.


class Terminal:
    """`llama chat` on a pseudo-terminal of 40 columns, whose model makes a token in 50 ms."""

    def __init__(self, home: Path, *arguments: str, **env: str) -> None:
        slow = (
            "import time\n"
            "from llama.engine import Engine\n"
            "step = Engine.step\n"
            "Engine.step = lambda self: (time.sleep(0.05), step(self))[1]\n"
            "from llama import cli\n"
            f"cli.main(['chat', *{arguments!r}])\n"
        )
        self._fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        settings = {"LLAMA_CACHE": str(home), "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", slow],
            cwd=ROOT,
            env={**os.environ, **settings, **env},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.shown = self.all_shown = ""  # since what was waited for last, and from the start

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str) -> None:
        """Reads until `text` appears after what was waited for before."""
        deadline = time.monotonic() + 60
        while text not in self.shown:
            assert select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))[0], (
                f"{text!r} did not come: {self.shown!r}"
            )
            data = os.read(self._fd, 10_000).decode(errors="replace")
            if "\x1b[6n" in data:  # prompt_toolkit asks where the cursor is
                self.type("\x1b[1;1R")
            self.shown += data
            self.all_shown += data
        self.shown = self.shown[self.shown.index(text) + len(text) :]

    def close(self) -> int:
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()
            os.close(self._fd)


def test_in_a_terminal(tmp_path: Path) -> None:
    """Ctrl-C stops an answer, keys typed during an answer wait unseen, Ctrl-D ends the chat."""
    terminal = Terminal(tmp_path, str(TINY), "--temperature", "0", NO_COLOR="1")
    terminal.wait_for(">>>")
    terminal.type("Tell me a story about a girl named Lily and a kite.\r")
    terminal.wait_for("Once upon")
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for(">>>")
    terminal.type("/undo\r")
    terminal.wait_for("and its answer")
    terminal.wait_for(">>>")
    terminal.type("How do you spell sunflower?\r")
    terminal.wait_for("S-U")
    terminal.type("What is 47 + 36?\r")
    terminal.wait_for("-L-O-W-E-R\r\n")
    terminal.wait_for("47 + 36 = 83.\r\n")
    terminal.wait_for(">>>")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-D or /bye ends the chat")
    terminal.wait_for(">>>")
    terminal.type("\x04")
    assert terminal.close() == 0
    assert "Traceback" not in terminal.all_shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", terminal.all_shown)
