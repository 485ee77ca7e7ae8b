"""Several copies of a model behind one address, by Ray Serve.

    pip install '.[serve]' 'ray[serve]' mmh3
    python -m examples.ray_serve params/tiny --replicas 2
    curl http://127.0.0.1:8000/v1/completions -H 'X-Session-Id: anna' \\
        -d '{"model": "tiny", "prompt": "One day, a bird"}'

Each replica holds the model and a prefix store of its own. Requests with the same `X-Session-Id`
go to the same replica, so that a dialog's earlier turns are in its store; an answer does not
depend on the replica. On a cluster, `serve deploy` takes `app` (see docs/deployment.md).
"""

import os
from pathlib import Path
from typing import Any

import cyclopts
from ray import serve
from ray.serve.config import HTTPOptions, RequestRouterConfig
from starlette.types import ASGIApp

from llama.cli import one_line_errors

_AFFINITY = RequestRouterConfig(
    request_router_class="ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
)


class LlamaServer:
    """A replica, which loads the model before it takes requests.

    model: a checkpoint's folder.
    options: arguments of `Llama.build`.
    """

    def __init__(self, model: str, **options: Any) -> None:
        from llama.serving.registry import ModelRegistry

        name = Path(model).resolve().name
        self.models = ModelRegistry({name: model}, keep_alive=-1, **options)
        self.models.load(name)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, which Ray asks for after the constructor."""
        from llama.serving.app import create_app

        return create_app(self.models)

    def __del__(self) -> None:
        self.models.close()


deployment: Any = serve.deployment(request_router_config=_AFFINITY, max_ongoing_requests=64)(
    serve.ingress()(LlamaServer)
)


def app(arguments: dict[str, str]) -> serve.Application:
    """For `serve run examples.ray_serve:app model=params/tiny`."""
    return deployment.bind(**arguments)


def main(
    model: str, /, *, replicas: int = 2, cpus: float = 1, host: str = "127.0.0.1", port: int = 8000
) -> None:
    """Starts a local Ray with a few replicas, and serves until Ctrl-C.

    Args:
        model: A checkpoint's folder.
        replicas: How many copies of it run.
        cpus: CPU cores of each replica.
        host: The address to listen on.
        port: The port to listen on.
    """
    variables = {"OMP_NUM_THREADS": str(max(int(cpus), 1)), "PYTHONPATH": os.getcwd()}
    actor = {"num_cpus": cpus, "runtime_env": {"env_vars": variables}}
    copies = deployment.options(num_replicas=replicas, ray_actor_options=actor)
    serve.start(http_options=HTTPOptions(host=host, port=port))
    serve.run(copies.bind(str(Path(model).resolve())), blocking=True)


if __name__ == "__main__":
    with one_line_errors():
        cyclopts.run(main)
