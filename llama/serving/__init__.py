"""HTTP: OpenAI's, Anthropic's, Ollama's and llama-server's routes on one port.

`http_errors` (errors in each dialect's shape), `wire` (bodies, streams) and `middleware` know no
model; `registry` loads models by name; `answers` turns a request into deltas of its answers. The
dialects (`openai_*`, `anthropic_*`, `ollama_*`, ...) translate to and from those; `app` puts them
together.
"""
