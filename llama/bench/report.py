"""What `llama bench` makes of the times: rates, shares of the ceiling, ratios, tables, a figure.

A step of decoding reads every linear layer's weights and the keys and values so far, so that its
ceiling is what torch reads in a second; a prompt's is what torch multiplies: 2 operations a
parameter and token, attention's own products not counted. Ratios are taken within a round and then
their median, for a machine that slows down slows all of them.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llama.args import ModelArgs, weight_shapes

# Bits of a weight in a linear layer, and in the output layer.
BITS = {"bfloat16": (16.0, 16.0), "int8": (8.5, 8.5), "int4": (4.5, 8.5)}
# The peers, and what of llama.cpp is compared with which of our formats.
TRANSFORMERS = "transformers"
LLAMA_CPP = {"bfloat16": "llama.cpp BF16", "int8": "llama.cpp Q8_0", "int4": "llama.cpp Q4_0"}
SHORT = 4  # tokens of the prompts where not the context counts
_RATIOS = ("x transformers", "x llama.cpp")
_GREEDY, _SAMPLED = "decode batch 1", "decode sampled"
# Ours in one family of colours, each peer in another.
_COLOURS = {
    "bfloat16": "#1f4e79",
    "int8": "#2f7fc1",
    "int4": "#8ec1e8",
    "transformers": "#8a8a8a",
    "llama.cpp BF16": "#a6541c",
    "llama.cpp Q8_0": "#e08a3c",
    "llama.cpp Q4_0": "#f5c48c",
}

Times = list[tuple[float, float]]  # of each round: seconds to the first token, and of the others


@dataclass(frozen=True)
class Request:
    """What all contenders are asked at a time: prompts of so many tokens in so many rows."""

    rows: int
    prompt: int
    tokens: int  # after the first
    sampled: bool = False


class Metric(NamedTuple):
    """A rate, in tokens a second, that a request gives."""

    name: str
    request: Request
    is_prefill: bool

    def rates(self, times: Times) -> list[float]:
        """The rate in each round."""
        r = self.request
        if self.is_prefill:
            return [r.prompt / first for first, _ in times]
        return [r.rows * r.tokens / rest for _, rest in times]


def metrics_of(prompt: int, context: int, tokens: int, batches: Sequence[int]) -> list[Metric]:
    """All that is measured; prefill of the context and decoding after it are one request."""
    long = Request(1, context, tokens)
    found = [Metric(f"prefill {prompt}", Request(1, prompt, 0), True)] if prompt != context else []
    found.append(Metric(f"prefill {context}", long, True))
    for rows in batches:
        found.append(Metric(f"decode batch {rows}", Request(rows, SHORT, tokens), False))
        if rows == 1:  # soon after what it is compared with
            found.append(Metric(_SAMPLED, Request(1, SHORT, tokens, True), False))
    found.append(Metric(f"decode at {context}", long, False))
    return found


def matrix_parameters(args: ModelArgs) -> tuple[int, int]:
    """How many parameters the layers' matrices have, and the output layer."""
    sizes = {name: math.prod(shape) for name, shape in weight_shapes(args).items() if shape[1:]}
    output = sizes.pop("output.weight")
    del sizes["tok_embeddings.weight"]
    return sum(sizes.values()), output


def bytes_read(args: ModelArgs, format_: str) -> float:
    """Bytes of weights that a step reads; of the embedding it reads only a row, left out here."""
    counts = zip(matrix_parameters(args), BITS[format_], strict=True)
    return sum(count * bits / 8 for count, bits in counts)


def decode_share(
    args: ModelArgs, request: Request, rate: float, weights: float, read: float
) -> float:
    """The part of `read`, in bytes a second, that decoding takes at that rate."""
    positions = request.prompt + (request.tokens + 1) / 2  # on average
    position = 2 * args.n_layers * args.kv_heads * args.head_dim * 2  # of bfloat16 or float16
    return (weights + request.rows * positions * position) * rate / request.rows / read


def prefill_share(args: ModelArgs, request: Request, rate: float, multiply: float) -> float:
    """The part of `multiply`, in operations a second, that a prompt takes at that rate."""
    layers, output = matrix_parameters(args)
    return 2 * (layers + output / request.prompt) * rate / multiply


def paired_ratio(mine: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(mine, base, strict=True))


def summary(
    args: ModelArgs,
    metrics: Sequence[Metric],
    times: dict[str, dict[Request, Times]],
    weights: dict[str, float],
    ceiling: dict[str, float],
) -> dict[str, dict[str, Any]]:
    """For each contender and metric: the median, its share of the ceiling, ratios, and all rounds.

    `times` has all contenders, with the requests that each was given, and `weights` the bytes that
    a step of each reads.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in times}
    for metric in metrics:
        request = metric.request
        measured = {n: metric.rates(t[request]) for n, t in times.items() if request in t}
        for name, rounds in measured.items():
            rate = statistics.median(rounds)
            if metric.is_prefill:
                share = prefill_share(args, request, rate, ceiling["multiply"])
            else:
                share = decode_share(args, request, rate, weights[name], ceiling["read"])
            entry: dict[str, Any] = {"median": rate, "share": share}
            found[name][metric.name] = entry
            for label, base in zip(_RATIOS, (TRANSFORMERS, LLAMA_CPP.get(name)), strict=True):
                if base in measured:
                    entry[label] = paired_ratio(rounds, measured[base])
            if metric.name == _SAMPLED:
                entry["x greedy"] = paired_ratio(rounds, found[name][_GREEDY]["rounds"])
            entry["rounds"] = rounds
    return found


def tables(
    contenders: dict[str, dict[str, Any]], metrics: Sequence[Metric], prompt: int
) -> list[str]:
    """The summary for people: what it takes to begin, then two rates side by side."""
    width = max(map(len, contenders)) + 2
    peaks = ["device_peak"] if any(c["device_peak"] for c in contenders.values()) else []
    heads = ["load, s", "peak, GB", *["GPU, GB" for _ in peaks], f"first token of {prompt}, s"]
    lines = ["", " " * width + "".join(f"{head:>{len(head) + 3}}" for head in heads)]
    for name, c in contenders.items():
        sizes = [f"{c[key] / 1e9:.2f}" for key in ("peak", *peaks)]
        values = [f"{c['load']:.2f}", *sizes, f"{c['first token']:.3f}"]
        row = (f"{value:>{len(head) + 3}}" for head, value in zip(heads, values, strict=True))
        lines.append(f"{name:<{width}}" + "".join(row))
    shown = [
        r for r in _RATIOS if any(r in m for c in contenders.values() for m in c["rates"].values())
    ]
    prefills = [metric.name for metric in metrics if metric.is_prefill]
    decodes = [metric.name for metric in metrics if not metric.is_prefill]
    if shown:
        lines += ["", "x: median ratio in the same round, to transformers in bfloat16 (tf) and to"]
        lines += ["llama.cpp in the same format (l.cpp). ceiling: the part of it that is used."]
    pairs = [names[i : i + 2] for names in (prefills, decodes) for i in range(0, len(names), 2)]
    short = {"x transformers": "x tf", "x llama.cpp": "x l.cpp"}
    for names in pairs:
        column = 19 + 9 * len(shown)
        lines += ["", " " * width + "".join(f"{f'{name}, tokens/s':>{column}}" for name in names)]
        head = f"{'median':>11}{'ceiling':>8}" + "".join(f"{short[ratio]:>9}" for ratio in shown)
        lines.append(" " * width + head * len(names))
        for contender, c in contenders.items():
            cells = "".join(_cells(c["rates"].get(name), shown) for name in names)
            if cells.strip():
                lines.append(f"{contender:<{width}}{cells}".rstrip())
    sampled = {n: c["rates"][_SAMPLED] for n, c in contenders.items() if _SAMPLED in c["rates"]}
    if sampled:
        ratios = ", ".join(f"{name} {entry['x greedy']:.2f}" for name, entry in sampled.items())
        lines += ["", f"sampled to greedy, in the same round: {ratios}"]
    return lines


def _cells(entry: dict[str, Any] | None, ratios: Iterable[str]) -> str:
    if entry is None:
        return " " * (19 + 9 * len(list(ratios)))
    rate = entry["median"]
    text = f"{rate:>11,.0f}" if rate >= 1000 else f"{rate:>11.1f}"
    text += f"{entry['share']:>8.0%}"
    return text + "".join(f"{entry[r]:>9.2f}" if r in entry else " " * 9 for r in ratios)


def draw(
    path: str, title: str, contenders: dict[str, dict[str, Any]], metrics: Sequence[Metric]
) -> None:
    """Bars of the medians: prefill, decoding at each batch, decoding after short and long context.

    The suffix of `path` says whether it is a .png or an .svg.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    prefills = {f"{m.request.prompt} tokens": m.name for m in metrics if m.is_prefill}
    batches = {
        f"batch {m.request.rows}": m.name for m in metrics if m.name.startswith("decode batch")
    }
    contexts = {
        f"after {m.request.prompt} tokens": m.name
        for m in metrics
        if not m.is_prefill and m.request.rows == 1 and not m.request.sampled
    }
    panels = {"Prefill": prefills, "Decode, short context": batches, "Decode, batch 1": contexts}
    widths = [max(len(groups), 2) for groups in panels.values()]
    figure = Figure(figsize=(3 + 2 * sum(widths), 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes: Any = figure.subplots(1, len(panels), width_ratios=widths)
    bar = 0.84 / len(contenders)
    for axis, (head, groups) in zip(axes, panels.items(), strict=True):
        for i, (contender, c) in enumerate(contenders.items()):
            places = [g + (i - (len(contenders) - 1) / 2) * bar for g in range(len(groups))]
            heights = [c["rates"][name]["median"] for name in groups.values()]
            bars = axis.bar(places, heights, bar * 0.92, label=contender, color=_COLOURS[contender])
            axis.bar_label(bars, fmt=_short, fontsize=7, rotation=90, padding=2)
        axis.set_title(head, fontsize=10)
        axis.set_xticks(range(len(groups)), groups)
        axis.margins(y=0.14)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("tokens per second")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=150)


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
