"""The shape of a model: the numbers of Meta's `params.json`, and what follows from them alone.

They show without a model or its files how large it is and which ranks can share it:

    args = ModelArgs(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, vocab_size=128256,
                     multiple_of=1024, ffn_dim_multiplier=1.3, rope_theta=500000.0)
    args.head_dim                              # 128
    weight_shapes(args)["output.weight"]       # (128256, 4096)
    args.misfit(ranks=3)                       # n_heads (32) is not divisible by ...
"""

import math
from dataclasses import dataclass
from numbers import Real

from llama.errors import InputError, InputTypeError


@dataclass
class ModelArgs:
    """The shape of a model, with the names of Meta's `params.json`.

    Raises ValueError where the numbers do not fit each other, TypeError for what is no number.
    """

    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None  # None: as many as n_heads
    vocab_size: int = -1  # -1 in Llama 2's files: the tokenizer knows it
    multiple_of: int = 256  # the hidden size of FeedForward is rounded up to it
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0  # Llama 2's, whose files do not state it; Llama 3 has 500000
    use_scaled_rope: bool = False  # Llama 3.1's scaling of low rotary frequencies
    rope_scaling_factor: float | None = None  # None: 32 for the shapes of Llama 3.2, else 8
    # Meta's files do not have these and mean the defaults; Hugging Face's may differ.
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_seq_len: int = 8192  # the context of training before the scaling
    head_dim: int = -1  # -1: dim / n_heads
    max_batch_size: int = 32
    max_seq_len: int = 2048

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None or (name, value) in (("vocab_size", -1), ("head_dim", -1)):
                continue
            is_number = isinstance(value, Real)
            if not is_number:
                raise InputTypeError(f"{name}={value!r:.40} should be a number")
            if not isinstance(value, bool) and not 0 < value < 2**53:
                raise InputError(f"{name}={value!r:.40} should be greater than 0, and a sane size")
        if self.n_layers > 10_000:
            raise InputError(f"n_layers={self.n_layers} should be at most 10000")
        if self.n_kv_heads is None:
            self.n_kv_heads = self.n_heads
        if self.rope_scaling_factor is None:
            # params.json says only use_scaled_rope for 3.1 (factor 8) and 3.2 (factor 32) alike.
            self.rope_scaling_factor = 32.0 if self.has_llama32_shape else 8.0
        if not self.rope_low_freq_factor < self.rope_high_freq_factor:
            raise InputError(
                f"rope_low_freq_factor={self.rope_low_freq_factor} should be less than "
                f"rope_high_freq_factor={self.rope_high_freq_factor}"
            )
        if self.head_dim == -1:
            if self.dim % self.n_heads:
                raise InputError(f"dim ({self.dim}) is not divisible by n_heads ({self.n_heads})")
            self.head_dim = self.dim // self.n_heads
        self.check_ranks(1)

    @property
    def has_llama32_shape(self) -> bool:
        """Whether this is Llama 3.2 1B or 3B, which only the shape distinguishes from a 3.1."""
        return (self.dim, self.n_layers) in ((2048, 16), (3072, 28))

    @property
    def hidden_dim(self) -> int:
        """The hidden size of the feed-forward layers."""
        return feed_forward_size(4 * self.dim, self.multiple_of, self.ffn_dim_multiplier)

    @property
    def kv_heads(self) -> int:
        """`n_kv_heads`, which is None only before `__post_init__`."""
        return self.n_kv_heads or self.n_heads

    def kv_heads_on_each_of(self, ranks: int) -> int:
        """How many KV heads a rank holds. With more ranks than heads, neighbours share one.

        Of 2 heads on 4 ranks, ranks 0 and 1 hold head 0, ranks 2 and 3 head 1, which is the one
        that their query heads read.
        """
        return max(self.kv_heads // ranks, 1)

    def num_parameters(self, tied: bool, ranks: int = 1) -> int:
        """How many each of `ranks` holds; an output layer tied to the embedding counts once."""
        shapes = weight_shapes(self, ranks)
        if tied:
            del shapes["output.weight"]
        return sum(map(math.prod, shapes.values()))

    def misfit(self, ranks: int) -> str | None:
        """Which sizes keep `ranks` processes from sharing the model; None where they can."""
        kv = ("n_kv_heads", self.kv_heads), ("the number of ranks", ranks)
        for (name, size), (by, divisor) in (
            (("head_dim", self.head_dim), ("two, for rotary pairs", 2)),
            (("n_heads", self.n_heads), ("n_kv_heads", self.kv_heads)),
            (("n_heads", self.n_heads), ("the number of ranks", ranks)),
            kv if ranks < self.kv_heads else kv[::-1],
            (("the feed-forward size", self.hidden_dim), ("the number of ranks", ranks)),
            (("vocab_size", max(self.vocab_size, 0)), ("the number of ranks", ranks)),
        ):
            if size % divisor:
                return f"{name} ({size}) is not divisible by {by} ({divisor})"
        return None

    def check_ranks(self, ranks: int) -> None:
        """Raises ValueError where `ranks` processes can't share the model."""
        if misfit := self.misfit(ranks):
            raise InputError(misfit)


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is that of a linear layer: any matrix but the embedding."""
    return len(shape) == 2 and name != "tok_embeddings.weight"


def feed_forward_size(hidden_dim: int, multiple_of: int, ffn_dim_multiplier: float | None) -> int:
    """The true hidden size: 2/3 of `hidden_dim` (for three matrices), scaled, then rounded up."""
    size = int(2 * hidden_dim / 3)
    if ffn_dim_multiplier is not None:
        size = int(ffn_dim_multiplier * size)
    return -(-size // multiple_of) * multiple_of


def weight_shapes(args: ModelArgs, ranks: int = 1) -> dict[str, tuple[int, ...]]:
    """The shape of each weight on each of `ranks` processes; with one rank, of the whole weights.

    Names and shapes are those of a `Transformer`'s state_dict there: a matrix is (outputs, inputs).
    Raises ValueError where `vocab_size` is not known yet or the ranks can't share the model.
    """
    if args.vocab_size < 1:
        raise InputError("vocab_size=-1: set it to the tokenizer's n_words first")
    args.check_ranks(ranks)
    dim, hidden, vocab = args.dim, args.hidden_dim // ranks, args.vocab_size // ranks
    q_dim = args.n_heads // ranks * args.head_dim
    kv_dim = args.kv_heads_on_each_of(ranks) * args.head_dim
    layer = {
        "attention.wq.weight": (q_dim, dim),
        "attention.wk.weight": (kv_dim, dim),
        "attention.wv.weight": (kv_dim, dim),
        "attention.wo.weight": (dim, q_dim),
        "feed_forward.w1.weight": (hidden, dim),
        "feed_forward.w2.weight": (dim, hidden),
        "feed_forward.w3.weight": (hidden, dim),
        "attention_norm.weight": (dim,),
        "ffn_norm.weight": (dim,),
    }
    return {
        "tok_embeddings.weight": (vocab, dim),
        **{
            f"layers.{i}.{key}": shape for i in range(args.n_layers) for key, shape in layer.items()
        },
        "norm.weight": (dim,),
        "output.weight": (vocab, dim),
    }
