"""The results of inference.py as bars."""

from collections.abc import Sequence
from typing import Any

from llama.evaluation.speed import Metric

# Ours in one family of colours, each peer in another.
_COLOURS = {
    "bfloat16": "#1f4e79",
    "bf12": "#25669f",
    "int8": "#2f7fc1",
    "int4": "#8ec1e8",
    "transformers": "#8a8a8a",
    "llama.cpp BF16": "#a6541c",
    "llama.cpp Q8_0": "#e08a3c",
    "llama.cpp Q4_0": "#f5c48c",
}


def draw(
    path: str, title: str, backends: dict[str, dict[str, Any]], metrics: Sequence[Metric]
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
    bar = 0.84 / len(backends)
    for axis, (head, groups) in zip(axes, panels.items(), strict=True):
        for i, (backend, c) in enumerate(backends.items()):
            centers = [g + (i - (len(backends) - 1) / 2) * bar for g in range(len(groups))]
            heights = [c["rates"][name]["median"] for name in groups.values()]
            bars = axis.bar(centers, heights, bar * 0.92, label=backend, color=_COLOURS[backend])
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
