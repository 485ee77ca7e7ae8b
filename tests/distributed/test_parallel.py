import atexit
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups
from fixtures import run_ranks, tiny_args, write_tiktoken
from torch.testing import assert_close

from llama import console, distributed
from llama.args import ModelArgs
from llama.checkpoint.loading import load
from llama.checkpoint.opening import open_checkpoint
from llama.checkpoint.saving import save_model
from llama.model import Attention, FeedForward, Transformer

CPU = torch.device("cpu")
TOKENS = torch.ones(1, 3, dtype=torch.long)


def end_all_groups():
    distributed.shutdown()
    fairscale_groups.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def no_groups(monkeypatch):
    """A process like a new one, which torchrun did not start; other tests' models live on after."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    end_all_groups()
    yield
    end_all_groups()
    distributed.initialize()


def groups_of_the_caller():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def listening_ports():
    """Local addresses at which this process listens, from Linux's tables."""
    sockets = set()
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and (target := os.readlink(link)).startswith("socket:["):
            sockets.add(target[len("socket:[") : -1])
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[3] == "0A" and row[9] in sockets}


# Two ranks


def save_reference_model(folder):
    """A one-rank checkpoint of the grouped-query reference model. Returns that model."""
    reference = torch.load((Path(__file__).parents[1] / "reference") / "reference.pt")["llama3"]
    model = Transformer(ModelArgs(**reference["args"], max_batch_size=3, max_seq_len=32))
    model.load_state_dict({key: weight.float() for key, weight in reference["weights"].items()})
    save_model(model, folder, write_tiktoken(folder / "tokens"), torch.float32)
    return model, reference["tokens"]


def logits_every_way(model, tokens):
    """Uncached, through the model's cache, ragged, at chosen columns; and some gradients."""
    lengths = torch.tensor([5, 9, 12])
    at = lengths.unsqueeze(1) + torch.arange(4)
    cache = model.new_cache(3, 20)
    model(tokens[:, :12], 0, cache=cache)
    outputs = {
        "whole": model(tokens),
        "steps": torch.cat([model(tokens[:, i : i + 1], i) for i in range(17)], dim=1),
        "ragged": model(tokens.gather(1, at), lengths, cache=cache),
        "chosen": model(tokens, logits_at=at),
    }
    (outputs["whole"] ** 2).mean().backward()
    shared = {key: p.grad for key, p in model.named_parameters() if key.endswith("norm.weight")}
    return {key: value.detach() for key, value in {**outputs, **shared}.items()}


def one_of_two_ranks(folder, tokens):
    main_before = console.is_main()
    model = load(folder, device=CPU, dtype="float32", max_batch_size=3, max_seq_len=32)
    with pytest.raises(ValueError, match="already runs models over 2 ranks"):
        distributed.initialize(1)
    tied = Transformer(tiny_args())
    tied.output.weight = tied.tok_embeddings.weight
    copies = {name: weight.bfloat16() for name, weight in tied.state_dict().items()}
    save_model(tied, folder / "tied", folder / "tokens", torch.bfloat16, copies)
    refusals = []
    three = {"n_heads": 9, "n_kv_heads": 3, "head_dim": 8}
    for wrong in (three, {"vocab_size": 65}, {"n_heads": 1, "n_kv_heads": 1}):
        args = tiny_args(**wrong)  # a shape alone knows no ranks
        with pytest.raises(ValueError, match="is not divisible") as caught:
            Transformer(args)
        refusals.append(str(caught.value))
    with pytest.raises(ValueError, match=r"n_heads \(9\) is not divisible by the number of ranks"):
        Attention(tiny_args(**three))
    with pytest.raises(ValueError, match=r"hidden size 85 is not divisible by the 2 ranks"):
        FeedForward(32, 128, multiple_of=1)
    results = {
        "values": logits_every_way(model, tokens),
        "shapes": {key: list(weight.shape) for key, weight in model.state_dict().items()},
        "cache": list(model.new_cache(3, 20).k.shape),
        "ranks": [distributed.model_parallel_rank(), distributed.model_parallel_size()],
        "main": [main_before, console.is_main()],
        "refusals": refusals,
        "broadcast": distributed.broadcast(torch.tensor([7 + dist.get_rank()])).item(),
    }
    if dist.get_rank() == 0:
        time.sleep(1)  # the other looks for the next group while this one still stands here
    distributed.shutdown()
    distributed.initialize(1)  # two models of one rank each
    assert (distributed.model_parallel_size(), dist.get_world_size()) == (1, 2)
    assert Transformer(tiny_args(**three)).n_layers == 2
    mine = torch.tensor([7 + dist.get_rank()])
    return results | {"own broadcast": distributed.broadcast(mine).item()}


def test_two_ranks_compute_what_one_does(tmp_path, capfd):
    model, tokens = save_reference_model(tmp_path)
    expected = logits_every_way(model, tokens)
    ranks = run_ranks(2, one_of_two_ranks, tmp_path, tokens)
    assert capfd.readouterr().out == ""
    assert open_checkpoint(tmp_path / "tied").tied
    assert len(open_checkpoint(tmp_path / "tied").files) == 2
    for number, rank in enumerate(ranks):
        assert rank["values"].keys() == expected.keys()
        for key, value in rank["values"].items():
            assert_close(value, expected[key], rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}{m}")
        assert rank["shapes"]["layers.0.attention.wq.weight"] == [24, 48]
        assert rank["shapes"]["layers.0.attention.wk.weight"] == [8, 48]
        assert rank["shapes"]["layers.0.feed_forward.w2.weight"] == [48, 88]
        assert rank["shapes"]["tok_embeddings.weight"] == [32, 48]
        assert rank["cache"] == [2, 3, 1, 20, 8]
        assert rank["ranks"] == [number, 2]
        assert rank["main"] == [number == 0] * 2
        assert rank["broadcast"] == 7
        assert rank["own broadcast"] == 7 + number
        assert rank["refusals"] == [
            "n_heads (9) is not divisible by the number of ranks (2)",
            "vocab_size (65) is not divisible by the number of ranks (2)",
            "n_heads (1) is not divisible by the number of ranks (2)",
        ]


def fail_on_one_rank():
    if os.environ["RANK"] == "1":
        raise ArithmeticError("rank one's own trouble")
    time.sleep(90)


def test_a_rank_that_fails_ends_the_others_with_its_reason():
    with pytest.raises(Exception, match="ArithmeticError: rank one's own trouble"):
        run_ranks(2, fail_on_one_rank, timeout=60)


# One process


def test_initialize_in_plain_python_needs_no_environment_and_leaves_it_alone(no_groups):
    before = dict(os.environ)
    distributed.initialize()
    assert dict(os.environ) == before
    assert (dist.get_world_size(), dist.get_rank()) == (1, 0)
    assert (distributed.model_parallel_size(), distributed.model_parallel_rank()) == (1, 0)
    assert console.is_main()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's socket tables")
def test_initialize_in_plain_python_opens_no_port(no_groups):
    before = listening_ports()
    distributed.initialize()
    assert listening_ports() == before


def test_part_of_torchruns_environment_is_none(no_groups, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")  # as a cluster may set them: no address, no one to meet
    distributed.initialize()
    assert dist.get_world_size() == 1


@pytest.mark.parametrize(
    ("name", "missing"),
    [("WORLD_SIZE", "RANK, MASTER_ADDR, MASTER_PORT"), ("RANK", "WORLD_SIZE, MASTER_ADDR")],
)
def test_one_of_rank_and_world_size_is_refused(no_groups, monkeypatch, name, missing):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=f"RANK and WORLD_SIZE but lacks {missing}"):
        distributed.initialize()
    monkeypatch.delenv(name)
    distributed.initialize()
    assert dist.get_world_size() == 1


def test_initialize_may_be_called_again(no_groups):
    distributed.initialize()
    group = dist.group.WORLD
    distributed.initialize()
    distributed.initialize(1)
    Transformer(tiny_args())
    assert dist.group.WORLD is group


def test_initialize_prints_nothing(no_groups, capfd):
    distributed.initialize()
    distributed.initialize()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("size", [0, -1, 2])
def test_a_size_that_does_not_divide_the_processes_is_refused(no_groups, size):
    with pytest.raises(ValueError, match=f"model_parallel_size={size} does not divide the 1 run"):
        distributed.initialize(size)
    distributed.initialize()  # and can be put right
    assert Transformer(tiny_args())(TOKENS).shape == (1, 3, 64)


def test_a_size_other_than_the_standing_one_is_refused(no_groups):
    distributed.initialize()
    with pytest.raises(ValueError, match=r"model_parallel_size=2, .* over 1 ranks"):
        distributed.initialize(2)


def test_shutdown_ends_what_was_started_and_all_can_start_again(no_groups):
    for _ in range(2):
        distributed.initialize()
        Transformer(tiny_args())(TOKENS)
        distributed.shutdown()
        assert not dist.is_initialized()
        assert not fairscale_groups.model_parallel_is_initialized()
        assert distributed.model_parallel_size() == 1
    distributed.shutdown()


def test_groups_of_the_caller_are_used_and_left_standing(no_groups):
    groups_of_the_caller()
    theirs = dist.group.WORLD
    model = Transformer(tiny_args())
    assert dist.group.WORLD is theirs
    distributed.shutdown()
    assert dist.group.WORLD is theirs
    assert model(TOKENS).shape == (1, 3, 64)


def test_fairscales_groups_of_the_caller_are_used_and_left_standing(no_groups):
    groups_of_the_caller()
    fairscale_groups.initialize_model_parallel(1)
    theirs = fairscale_groups.get_model_parallel_group()
    distributed.initialize()
    distributed.shutdown()
    assert fairscale_groups.get_model_parallel_group() is theirs


@pytest.mark.parametrize("start", [groups_of_the_caller, distributed.initialize])
def test_groups_that_someone_else_destroyed_are_made_anew(no_groups, start):
    start()
    model = Transformer(tiny_args())
    dead = fairscale_groups.get_model_parallel_group()
    dist.destroy_process_group()  # fairscale's stay, and point nowhere
    distributed.initialize()
    assert fairscale_groups.get_model_parallel_group() is not dead
    assert model(TOKENS).shape == (1, 3, 64)
    model(TOKENS).sum().backward()
    distributed.shutdown()
    assert not dist.is_initialized()


def exit_with_groups_standing(folder):
    # Registered first, it runs last at exit.
    atexit.register(lambda: (folder / str(dist.is_initialized())).touch())
    Transformer(tiny_args())(TOKENS)
    return dist.get_world_size()


def test_torchrun_with_one_process_and_its_end(tmp_path, capfd):
    assert run_ranks(1, exit_with_groups_standing, tmp_path) == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["False"]
    assert capfd.readouterr().out == ""


def test_only_the_first_rank_speaks(no_groups, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert not console.is_main()
    console.say("not I")
    monkeypatch.setenv("RANK", "0")
    console.say("only", end=" ")
    console.say("I")
    assert capsys.readouterr().out == "only I\n"
    monkeypatch.delenv("RANK")


# Devices and dtypes


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_without_an_accelerator_the_device_is_the_cpu(no_accelerator):
    assert distributed.select_device() == CPU
    assert distributed.select_device("cpu") == CPU
    assert distributed.select_device(torch.device("cpu")) == CPU


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("tpu", "'tpu' is none of cuda, mps and cpu"),
        ("meta", "'meta' is none of cuda, mps and cpu"),
        ("xpu", "'xpu' is none of cuda, mps and cpu"),
        ("cuda", "needs GPU 0, but torch sees 0"),
        ("cuda:3", "needs GPU 3, but torch sees 0"),
        ("mps", "no Apple GPU"),
    ],
)
def test_a_device_that_is_not_there_is_refused(no_accelerator, monkeypatch, device, message):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match=message):
        distributed.select_device(device)


def test_each_rank_of_a_host_has_its_own_gpu(two_gpus, monkeypatch):
    assert distributed.select_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.select_device() == torch.device("cuda", 1)
    assert distributed.select_device("cuda") == torch.device("cuda", 1)
    assert distributed.select_device("cuda:0") == torch.device("cuda", 0)  # the host's only rank
    assert distributed.select_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="needs GPU 2, but torch sees 2"):
        distributed.select_device()


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_gpus_number_that_two_ranks_would_share_is_refused(two_gpus, monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"'cuda:0' on local rank 1 of 2: .* write device='cuda'"):
        distributed.select_device("cuda:0")
    if gpus == 2:
        assert distributed.select_device("cuda:1") == torch.device("cuda", 1)
    else:  # each rank sees one GPU, its own
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert distributed.select_device("cuda:0") == torch.device("cuda", 0)


def test_an_apple_gpu_is_preferred_to_the_cpu(no_accelerator, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert distributed.select_device() == torch.device("mps")


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [
        ("bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("float16", torch.float16),
        ("fp16", torch.float16),
        ("float32", torch.float32),
        ("fp32", torch.float32),
        (torch.float16, torch.float16),
    ],
)
def test_the_dtype_asked_for_wins(asked, dtype):
    assert distributed.select_dtype(CPU, asked) == dtype


@pytest.mark.parametrize("asked", ["int7", "", torch.int8, torch.float64])
def test_a_dtype_that_models_do_not_run_in_is_refused(asked):
    with pytest.raises(ValueError, match=f"dtype {asked!r} is none of bfloat16, .*float32"):
        distributed.select_dtype(CPU, asked)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 0), "float16"), ((8, 0), "bfloat16")])
def test_a_gpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    monkeypatch, capability, dtype
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # or emulates it
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert distributed.select_dtype(torch.device("cuda", 0)) == getattr(torch, dtype)


def test_a_cpu_computes_in_bfloat16_or_float32(monkeypatch):
    assert distributed.select_dtype(CPU) in (torch.bfloat16, torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert distributed.select_dtype(CPU) == torch.float32


@pytest.mark.parametrize("multiplies", [False, True])
def test_a_cpu_multiplies_bfloat16_but_reads_it_anyway(monkeypatch, multiplies):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: multiplies)
    assert distributed.cpu_multiplies_bfloat16() == multiplies
    assert distributed.select_dtype(CPU) == (torch.bfloat16 if multiplies else torch.float32)
    assert distributed.select_dtype(CPU, parameters=100_000_000) == torch.bfloat16


def test_a_small_model_is_float32_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert distributed.select_dtype(CPU, parameters=6_000_000) == torch.float32
    assert distributed.select_dtype(CPU, "bf16", parameters=6_000_000) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    cuda = torch.device("cuda", 0)
    assert distributed.select_dtype(cuda, parameters=6_000_000) == torch.bfloat16
