"""What an engine does and has done, in numbers: for metrics, and for limits on a queue."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class EngineStats:
    """Requests and positions at this moment, then totals since the engine was made.

    `running` requests are admitted, `waiting` ones are not, or are preempted. Keys and values of
    `kv_positions_used` positions are in memory, of at most `kv_positions`. Of `prefix_queries`
    tokens of prompts that were looked up in the prefix store, `prefix_hits` were there.
    `prompt_tokens` counts prompts when they are computed or copied to their end, and
    `generated_tokens` all tokens that were chosen, stop tokens too. `finished` counts requests by
    their `finish_reason`.
    """

    running: int = 0
    waiting: int = 0
    waiting_prompt_tokens: int = 0
    kv_positions: int = 0
    kv_positions_used: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
