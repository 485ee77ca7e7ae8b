"""llama-server's routes: tokens of a text, prompts of a dialog, health, metrics."""

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llama import Llama

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|eot_id|>é"}]


def test_tokens_and_back(url: str, llama: Llama) -> None:
    text = "Hello <|eot_id|> world é 你"
    tokens = httpx.post(f"{url}/tokenize", json={"content": text}).json()["tokens"]
    assert tokens == llama.tokenizer.encode(text)
    assert not set(tokens) & set(llama.tokenizer.special_tokens.values())
    answer = httpx.post(f"{url}/detokenize", json={"tokens": tokens}).json()
    assert answer == {"content": text}


def test_the_token_that_begins_a_text_and_pieces(url: str, llama: Llama) -> None:
    body = {"content": "Hi é", "add_special": True, "with_pieces": True, "model": "tiny"}
    tokens = httpx.post(f"{url}/tokenize", json=body).json()["tokens"]
    assert tokens[0] == {"id": llama.tokenizer.bos_id, "piece": "<|begin_of_text|>"}
    pieces = [t["piece"] for t in tokens[1:]]
    data = b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces)
    assert data.decode() == "Hi é"
    assert any(isinstance(p, list) for p in pieces)


def test_the_prompt_of_a_dialog(url: str, llama: Llama) -> None:
    answer = httpx.post(f"{url}/apply-template", json={"messages": MESSAGES}).json()
    assert answer["tokens"] == llama.formatter.encode_dialog_prompt(MESSAGES)
    assert answer["prompt"] == llama.tokenizer.decode(answer["tokens"])
    assert answer["tokens"].count(llama.tokenizer.special_tokens["<|eot_id|>"]) == 2


def test_the_prompt_of_a_dialog_with_tools(url: str, llama: Llama) -> None:
    function = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    messages = [*MESSAGES, {"role": "assistant", "content": "It is"}]
    body = {
        "messages": messages,
        "tools": tools,
        "continue_final_message": True,
        "chat_template_kwargs": {"date_string": "1 May 2026"},
    }
    answer = httpx.post(f"{url}/apply-template", json=body).json()
    assert answer["tokens"] == llama.formatter.encode_dialog_prompt(
        messages, tools, date="1 May 2026", continue_final_message=True
    )


def test_what_the_server_is_set_to(url: str) -> None:
    props = httpx.get(f"{url}/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 1024
    assert (props["total_slots"], props["bos_token"]) == (8, "<|begin_of_text|>")
    assert httpx.get(f"{url}/props", params={"model": "big"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "x", "parse_special": True}, "parse_special"),
        ("/tokenize", {"content": 5}, "content"),
        ("/detokenize", {"tokens": [-1]}, "-1 is no token id"),
        ("/detokenize", {"tokens": [10**30]}, "no token id"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
        ("/apply-template", {"messages": []}, "messages"),
        ("/apply-template", {"messages": MESSAGES, "chat_template": "x"}, "chat_template"),
    ],
)
def test_what_is_wrong_is_refused_by_name(url: str, path: str, body: Any, words: str) -> None:
    response = httpx.post(url + path, json=body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_metrics_have_the_names_of_vllm(url: str) -> None:
    def read() -> dict[str, float]:
        text = httpx.get(f"{url}/metrics").text
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("model_name") == "tiny"
            and sample.labels.get("finished_reason", "length") == "length"
        }

    message = {"role": "user", "content": "Count. " * 150}
    body = {"model": "tiny", "messages": [message], "max_tokens": 5, "ignore_eos": True}
    httpx.post(f"{url}/v1/chat/completions", json=body).raise_for_status()
    before = read()
    usage = httpx.post(f"{url}/v1/chat/completions", json=body).json()["usage"]
    after = read()
    change = {name: after[name] - before.get(name, 0) for name in after}
    assert change["vllm:prompt_tokens_total"] == usage["prompt_tokens"]
    assert change["vllm:generation_tokens_total"] == 5
    assert change["vllm:prefix_cache_queries_total"] == usage["prompt_tokens"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert change["vllm:prefix_cache_hits_total"] == cached > 0
    assert change["vllm:request_success_total"] == 1
    assert change["vllm:time_to_first_token_seconds_count"] == 1
    assert change["vllm:e2e_request_latency_seconds_count"] == 1
    assert change["vllm:inter_token_latency_seconds_count"] <= 4
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert after["vllm:kv_cache_usage_perc"] == 0


def test_a_route_that_is_not_there(url: str) -> None:
    response = httpx.get(f"{url}/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "Not Found: GET /v1/nothing"
    response = httpx.put(f"{url}/api/delete", json={})
    assert (response.status_code, response.headers["allow"]) == (405, "DELETE, POST")
    assert response.json()["error"] == "Method Not Allowed: PUT /api/delete"
