"""Numbers for Prometheus, with vLLM's names, so that its dashboards and routers fit.

The engine counts (`EngineStats`); its numbers are read when they are asked for. What a client sees
of time is observed while its answer is read: `ModelMetrics`.
"""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llama.engine.request import Sequence
from llama.engine.stats import EngineStats

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ModelMetrics(NamedTuple):
    """The histograms of a model."""

    time_to_first_token: Histogram
    inter_token_latency: Histogram
    request_latency: Histogram
    queue_time: Histogram

    def observe_tokens(self, count: int, seconds: float) -> None:
        """`count` tokens came `seconds` after the one before them."""
        for _ in range(count):
            self.inter_token_latency.observe(seconds / count)

    def observe_request(self, sequence: Sequence) -> None:
        """A request has ended."""
        times = sequence.times
        queued = times["queued"]
        self.request_latency.observe(times.get("finished", time.monotonic()) - queued)
        if "started" in times:
            self.queue_time.observe(times["started"] - queued)
        if "first_token" in times:
            self.time_to_first_token.observe(times["first_token"] - queued)


class Metrics:
    """The metrics of a server; `stats` returns what the engines of the loaded models count."""

    def __init__(self, stats: Callable[[], dict[str, EngineStats]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats))
        ProcessCollector(registry=self._registry)
        self._time_to_first_token = self._histogram("time_to_first_token", "Until the first token")
        self._inter_token_latency = self._histogram("inter_token_latency", "Between two tokens")
        self._request_latency = self._histogram("e2e_request_latency", "From arrival to end")
        self._queue_time = self._histogram("request_queue_time", "From arrival to admission")

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"vllm:{name}_seconds", text, ["model_name"], buckets=_SECONDS, registry=self._registry
        )

    def of(self, model: str) -> ModelMetrics:
        """The histograms of a model."""
        return ModelMetrics(
            self._time_to_first_token.labels(model),
            self._inter_token_latency.labels(model),
            self._request_latency.labels(model),
            self._queue_time.labels(model),
        )

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], dict[str, EngineStats]]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        stats = self._stats().items()
        gauges: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
            "num_requests_running": ("Requests that are admitted", lambda s: s.running),
            "num_requests_waiting": ("Requests that wait", lambda s: s.waiting),
            "kv_cache_usage_perc": (
                "Used part of the memory for keys and values, 1 is all",
                lambda s: s.kv_positions_used / max(s.kv_positions, 1),
            ),
        }
        counters: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
            "prefix_cache_queries": (
                "Tokens of prompts that were looked up in the prefix store",
                lambda s: s.prefix_queries,
            ),
            "prefix_cache_hits": ("Those that were found", lambda s: s.prefix_hits),
            "num_preemptions": ("Preemptions", lambda s: s.preemptions),
            "prompt_tokens": ("Tokens of computed prompts", lambda s: s.prompt_tokens),
            "generation_tokens": ("Generated tokens", lambda s: s.generated_tokens),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            for model, numbers in stats:
                gauge.add_metric([model], value(numbers))
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            for model, numbers in stats:
                counter.add_metric([model], value(numbers))
            yield counter
        ended = CounterMetricFamily(
            "vllm:request_success", "Requests that ended", labels=["model_name", "finished_reason"]
        )
        for model, numbers in stats:
            for reason, count in numbers.finished.items():
                ended.add_metric([model, reason], count)
        yield ended
