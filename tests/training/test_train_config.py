"""Settings, and the learning rate that follows from them."""

import math

import numpy as np
import pytest
from fixtures import tiny_args

from llama.lora.adapter_layers import LoraConfig
from llama.training import TrainConfig
from llama.training.config import default_learning_rate, learning_rate


def test_numbers_of_numpy_are_numbers() -> None:
    assert TrainConfig(steps=np.int64(3), clip=np.float32(0.5)).steps == 3


def test_the_cosine_warms_up_and_falls_to_its_end() -> None:
    config = TrainConfig(final_learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(config, 2.0, step, 110) for step in (0, 4, 9, 10, 60, 110, 500)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2])


def test_wsd_is_stable_and_then_falls_in_a_line() -> None:
    config = TrainConfig(schedule="wsd", decay=0.2, warmup_steps=10, final_learning_rate=0.5)
    rates = [learning_rate(config, 1.0, step, 100) for step in (0, 9, 10, 80, 90, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.75, 0.5])


def test_warm_up_is_a_tenth_of_a_short_run() -> None:
    rates = [learning_rate(TrainConfig(), 1.0, step, 50) for step in range(6)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0


def test_the_learning_rate_that_is_usual_for_each_way_of_training() -> None:
    small, large = tiny_args(dim=256), tiny_args(dim=4096, n_heads=32, n_kv_heads=8)
    assert default_learning_rate(small, False, False) == pytest.approx(1.8e-3, rel=0.01)
    assert default_learning_rate(large, False, False) == pytest.approx(1.1e-4, rel=0.03)
    assert default_learning_rate(large, True, False) == 2e-5
    assert default_learning_rate(large, True, True) == 2e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs=0 should be greater than 0"),
        ({"steps": -1}, "steps=-1"),
        ({"steps": 2.5}, "steps=2.5 should be a whole number"),
        ({"steps": True}, "steps=True should be a whole number"),
        ({"batch_size": "8"}, "batch_size='8' should be a whole number"),
        ({"clip": None}, "clip=None should be a number"),
        ({"seed": -1}, "seed=-1 should be 0 or more"),
        ({"seed": 2**63}, "should be less than"),
        ({"betas": (0.9, 1.0)}, "betas="),
        ({"steps": 10, "warmup_steps": 11}, "warmup_steps=11 is more than the 10 steps"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"schedule": "linear"}, "schedule='linear' is none of cosine, wsd"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is none of adamw, muon"),
        ({"data_parallel": "zero"}, "data_parallel='zero' is none of ddp, fsdp"),
        ({"decay": 1.5}, "decay=1.5 should be a share"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 should be 0 or more"),
        ({"quantize": "int8"}, "give lora as well"),
        ({"quantize": "int3", "lora": LoraConfig()}, "quantize='int3' is none of int8, int4"),
        ({"lora": LoraConfig(), "data_parallel": "fsdp"}, "trained with ddp"),
        ({"optimizer": "muon", "model_parallel_size": 2}, "each matrix whole"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)
