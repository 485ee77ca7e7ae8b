"""The list of models, by OpenAI's own client."""

import openai
import pytest
from serving.conftest import TINY, running

from llama.serving.app import create_app
from llama.serving.registry import ModelRegistry


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "llama")
    assert model.created > 0
    assert model.max_model_len == 1024
    assert client.models.retrieve("tiny") == model
    assert client.models.with_raw_response.retrieve("tiny").http_response.status_code == 200
    with pytest.raises(openai.NotFoundError, match="there is no model 'big'"):
        client.models.retrieve("big")


def test_names_with_slashes_and_models_that_are_not_loaded() -> None:
    registry = ModelRegistry({"meta-llama/Llama-3.2-1B": TINY, "tiny": TINY}, device="cpu")
    with running(create_app(registry)) as url:
        for base in (url, f"{url}/v1"):
            client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
            assert [m.id for m in client.models.list()] == ["meta-llama/Llama-3.2-1B", "tiny"]
            model = client.models.retrieve("meta-llama/Llama-3.2-1B")
            assert model.id == "meta-llama/Llama-3.2-1B"
            assert not hasattr(model, "max_model_len")
