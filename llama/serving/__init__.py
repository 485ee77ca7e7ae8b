"""HTTP: OpenAI's, Anthropic's, Ollama's and llama-server's routes and a web page on one port.

`http_errors` (errors in each dialect's shape) and `wire` (bodies, streams) know no model;
`registry` loads models by name; `running` runs requests within the server's limits, and `answers`
turns those of any dialect into deltas of their answers. The dialects (`openai_*`, `anthropic_*`,
`ollama_*`, `llama_server`) translate to and from those, `rag_*` are documents, and `web_page` is
the page for readers; `app` puts them together, behind `middleware`; `serve` is the command, and
`lifecycle` runs it from the first connection to the last.

The chat at the terminal is apart from that: `chat_session` is a dialog and what may be done with
it, `chat_models` are what answers (a `Llama` in this process, or any server in OpenAI's dialect);
`terminal_input` reads, `terminal_screen` writes, `terminal_commands` are the chat's own commands,
and `terminal_chat` is `llama chat` and `llama run`.
"""
