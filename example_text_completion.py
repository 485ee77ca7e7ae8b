"""Completes some texts: the bundled model's, or those of the checkpoint that the flags name.

    python example_text_completion.py
    torchrun --nproc_per_node 1 example_text_completion.py \
        --ckpt_dir Meta-Llama-3-8B --tokenizer_path Meta-Llama-3-8B/tokenizer.model
"""

from pathlib import Path

from llama.cli import run

TINY = str(Path(__file__).parent / "params" / "tiny")


def main(
    ckpt_dir: str = TINY,
    tokenizer_path: str | None = None,
    temperature: float = 0.6,
    top_p: float = 0.9,
    max_seq_len: int = 256,
    max_gen_len: int = 64,
    max_batch_size: int = 4,
    quantize: str | None = None,
) -> None:
    """Continues some prompts, as a model does that was not tuned to chat.

    Args:
        ckpt_dir: folder of the checkpoint; the bundled model's by default.
        tokenizer_path: the tokenizer's file; by default the one in ckpt_dir.
        temperature: 0 always takes the likeliest token, higher values vary more.
        top_p: draws from the likeliest tokens that together have this probability.
        max_seq_len: most tokens of a prompt and its answer together.
        max_gen_len: most tokens of an answer.
        max_batch_size: most prompts that run at a time.
        quantize: bf12 (exact), int8 or int4 weights, on a CPU; by default as they are stored.
    """
    # Here, because torch takes seconds to import: Ctrl-C then ends without a traceback.
    from llama import Llama
    from llama.console import say

    llama = Llama.build(
        ckpt_dir=ckpt_dir,
        tokenizer_path=tokenizer_path,
        max_seq_len=max_seq_len,
        max_batch_size=max_batch_size,
        quantize=quantize,
    )
    prompts = [
        "Once upon a time, there was a little dog named Max. One day,",
        "Lily and her mom went to the park. They saw",
        "Tom was sad because",
        """A list of animals and their young:

dog: puppy
cat:""",
    ]
    for prompt in prompts:
        say(prompt)
        say("> ", end="")
        for chunk in llama.text_completion_stream(
            [prompt], max_gen_len=max_gen_len, temperature=temperature, top_p=top_p
        ):
            say(chunk.text, end="")
        say("\n\n==================================\n")


if __name__ == "__main__":
    run(main)
