"""Answers in some chats, with the bundled model or the checkpoint that the flags name.

    python example_chat_completion.py
    torchrun --nproc_per_node 1 example_chat_completion.py \
        --ckpt_dir Meta-Llama-3-8B-Instruct \
        --tokenizer_path Meta-Llama-3-8B-Instruct/tokenizer.model
"""

from pathlib import Path

from llama.cli import run

TINY = str(Path(__file__).parent / "params" / "tiny")


def main(
    ckpt_dir: str = TINY,
    tokenizer_path: str | None = None,
    temperature: float = 0.6,
    top_p: float = 0.9,
    max_seq_len: int = 512,
    max_batch_size: int = 4,
    max_gen_len: int | None = None,
    quantize: str | None = None,
) -> None:
    """Continues some dialogs by the assistant's next message.

    Args:
        ckpt_dir: folder of the checkpoint; the bundled model's by default.
        tokenizer_path: the tokenizer's file; by default the one in ckpt_dir.
        temperature: 0 always takes the likeliest token, higher values vary more.
        top_p: draws from the likeliest tokens that together have this probability.
        max_seq_len: most tokens of a dialog and its answer together.
        max_batch_size: most dialogs that run at a time.
        max_gen_len: most tokens of an answer; by default up to max_seq_len.
        quantize: bf12 (exact), int8 or int4 weights, on a CPU; by default as they are stored.
    """
    # Here, because torch takes seconds to import: Ctrl-C then ends without a traceback.
    from llama import Dialog, Llama
    from llama.console import say

    llama = Llama.build(
        ckpt_dir=ckpt_dir,
        tokenizer_path=tokenizer_path,
        max_seq_len=max_seq_len,
        max_batch_size=max_batch_size,
        quantize=quantize,
    )
    dialogs: list[Dialog] = [
        [{"role": "user", "content": "Hi! How are you today?"}],
        [{"role": "user", "content": "Tell me a short story about a dog."}],
        [
            {"role": "system", "content": "Facts:\nMia lives in Oslo. Tom lives in Lima."},
            {"role": "user", "content": "Where does Tom live?"},
        ],
        [
            {"role": "user", "content": "My name is Clara."},
            {"role": "assistant", "content": "Nice to meet you, Clara!"},
            {"role": "user", "content": "What is 24 + 38?"},
            {"role": "assistant", "content": "24 + 38 = 62."},
            {"role": "user", "content": "What is my name?"},
        ],
        [
            {"role": "system", "content": "You are a kind storyteller."},
            {"role": "user", "content": "Please tell me a story about a girl named Lily."},
        ],
    ]
    for dialog in dialogs:
        for message in dialog:
            say(f"{message['role'].capitalize()}: {message['content']}\n")
        say("> Assistant: ", end="")
        for chunk in llama.chat_completion_stream(
            [dialog], max_gen_len=max_gen_len, temperature=temperature, top_p=top_p
        ):
            say(chunk.text, end="")
        say("\n\n==================================\n")


if __name__ == "__main__":
    run(main)
