"""A classifier by LoRA: what is trained is what `classify` scores."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llama import InputError, Llama
from llama.errors import ContextLengthError
from llama.lora.adapter_layers import LoraConfig
from llama.tasks import adapter_prompt, classifier_adapter, classify, train_adapter
from llama.tasks.label_prompts import LabelPrompt
from llama.training import Document, TrainConfig

LABELS = ["积极", "消极"]
EXAMPLES = [
    *[(f"hello the world {i}", "积极") for i in range(4)],
    *[(f"user assistant {i}", "消极") for i in range(4)],
]
CONFIG = TrainConfig(
    steps=60,
    seq_len=128,
    batch_size=1,
    learning_rate=1e-2,
    warmup_steps=1,
    dtype=torch.float32,
    lora=LoraConfig(r=8),
)


def test_it_tells_apart_what_it_was_trained_on(folder: Path, tmp_path: Path) -> None:
    train_adapter(tmp_path / "out", folder, EXAMPLES, LABELS, CONFIG, instruction="?", device="cpu")
    llama = Llama.build(folder, adapter=tmp_path / "out", device="cpu", dtype="float32")
    texts = [text for text, _ in EXAMPLES]
    options = adapter_prompt(tmp_path / "out")
    expected = {"labels": LABELS, "instruction": "?", "chat": True, "calibrate": False}
    assert options == expected
    found = [result.label for result in classify(llama, texts, **options)]
    assert found == [label for _, label in EXAMPLES]
    before = Llama.build(folder, device="cpu", dtype="float32")
    assert [r.label for r in classify(before, texts, **options)] != found


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("kind", ["llama", "llama2"])
def test_the_label_and_its_end_count_in_the_loss(
    kind: str,
    chat: bool,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    llama: Llama = request.getfixturevalue(kind)
    base = Path(llama.tokenizer.model_path).parent
    seen: list[Document] = []

    def spy(out: Any, tokenizer: Any, documents: list[Document], *_: Any, **options: Any) -> None:
        seen.extend([*documents, *options["held_out"]])

    monkeypatch.setattr(classifier_adapter, "train", spy)
    config = TrainConfig(lora=LoraConfig())
    held_out = [("the user", "消极")]
    train_adapter(tmp_path, base, EXAMPLES, LABELS, config, held_out=held_out, chat=chat)
    assert adapter_prompt(tmp_path)["chat"] == chat
    prompt = LabelPrompt(llama.formatter, LABELS, chat=chat)
    for (text, label), document in zip([*EXAMPLES, *held_out], seen, strict=True):
        before, completion = prompt.encode(text, label)
        assert document.tokens.tolist() == before + completion
        assert document.loss_mask.tolist() == [False] * len(before) + [True] * len(completion)


@pytest.mark.parametrize(
    ("examples", "labels", "config", "error", "message"),
    [
        ([], LABELS, CONFIG, InputError, "examples is empty"),
        (EXAMPLES, ["积极", "一般"], CONFIG, InputError, r"examples\[4\] has the label '消极'"),
        (EXAMPLES, ["积极"], CONFIG, InputError, "labels is only '积极'"),
        (EXAMPLES, LABELS, TrainConfig(), InputError, "config.lora is None"),
        ([("b" * 1000, "积极")], LABELS, CONFIG, ContextLengthError, r"\[0\] has 1\d{3} .* 128"),
    ],
)
def test_wrong_input(
    folder: Path, tmp_path: Path, examples: Any, labels: Any, config: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        train_adapter(tmp_path / "out", folder, examples, labels, config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            "no classifier.json in .*, which `llama tasks train --lora` writes: give the labels",
        ),
        ('{"labels": ["a"], "chat": true}', "is damaged: labels is only 'a'"),
        ('{"labels": ["a", "b"], "chat": 3}', "is damaged: instruction is None, chat 3"),
        ("[", "is not JSON"),
    ],
)
def test_adapters_without_their_labels(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "classifier.json").write_text(content)
    with pytest.raises(InputError, match=message):
        adapter_prompt(tmp_path)
