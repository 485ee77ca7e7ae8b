"""The chat template that makes transformers, vLLM and others write what `ChatFormat` encodes.

    tokenizer.chat_template = chat_template()          # as `llama convert --to hf` stores it
    tokenizer.apply_chat_template(dialog, tools=[...], add_generation_prompt=True)

Beside messages and tools it knows `builtin_tools` and `date_string`, as the released templates do,
and `tool_format`. For the pythonic format and for built-in tools the arguments of calls have to be
objects, since Jinja can't parse JSON; and results stand in the order in which they come.
"""

import json

from llama import dialog
from llama.dialog import ToolFormat

# `ns` carries what is to be written into a later message. A value's `repr` is that of a list of it.
_TEMPLATE = """\
{{- bos_token -}}
{%- set builtin = builtin_tools or [] -%}
{%- set form = tool_format or @DEFAULT_FORMAT@ -%}
{%- set ns = namespace(system='', offer='') -%}
{%- if builtin or (tools and form == 'json') -%}
  {%- set names = @BUILTIN@ | replace('{names}', builtin | join(', ')) -%}
  {%- set dates = @DATES@ | replace('{date}', date_string or @DEFAULT_DATE@) -%}
  {%- set ns.system = @ENVIRONMENT@ + (names if builtin else '') + dates -%}
{%- endif -%}
{%- if tools and form == 'json' -%}
  {%- set ns.offer = @JSON_OFFER@ -%}
  {%- for tool in tools -%}
    {%- set ns.offer = ns.offer + tool | tojson(indent=4) + '\\n\\n' -%}
  {%- endfor -%}
{%- elif tools -%}
  {%- set functions = tools | map(attribute='function') | list -%}
  {%- set ns.system = ns.system + @PYTHONIC_OFFER@ + functions | tojson(indent=4) -%}
{%- endif -%}
{%- if ns.system and messages[0]['role'] != 'system' -%}
  {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + ns.system + '<|eot_id|>' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set role = 'ipython' if message['role'] == 'tool' else message['role'] -%}
  {%- set content = message['content'] -%}
  {%- if content is undefined or content is none -%}{%- set content = '' -%}{%- endif -%}
  {%- if content is not string -%}{%- set content = content | tojson -%}{%- endif -%}
  {%- set content = content | trim -%}
  {%- if message['is_error'] -%}{%- set content = {'error': content} | tojson -%}{%- endif -%}
  {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}
  {%- if loop.first and role == 'system' -%}
    {{- ns.system -}}
    {{- '\\n\\n' if content and ns.system and form != 'json' and tools -}}
  {%- endif -%}
  {%- if role == 'user' -%}{{- ns.offer -}}{%- set ns.offer = '' -%}{%- endif -%}
  {{- content -}}
  {%- if message['tool_calls'] -%}
    {%- set called = message['tool_calls'] | map(attribute='function') | list -%}
    {%- set names = called | map(attribute='name') | select('in', builtin) | list -%}
    {%- set pythonic = form != 'json' and not names -%}
    {{- '<|python_tag|>' if names or content -}}
    {{- '[' if pythonic -}}
    {%- for function in called -%}
      {%- if not loop.first -%}{{- ', ' if pythonic else '; ' -}}{%- endif -%}
      {%- set arguments = function['arguments'] -%}
      {%- if pythonic or function['name'] in builtin -%}
        {{- function['name'] + ('(' if pythonic else '.call(') -}}
        {%- for key, value in arguments | items -%}
          {{- key + '=' + (([value] | string)[1:-1] if pythonic else value | tojson) -}}
          {{- ', ' if not loop.last -}}
        {%- endfor -%}
        {{- ')' -}}
      {%- else -%}
        {{- '{"name": ' + function['name'] | tojson + ', "parameters": ' -}}
        {{- (arguments if arguments is string else arguments | tojson) + '}' -}}
      {%- endif -%}
    {%- endfor -%}
    {{- ']' if pythonic -}}
  {%- endif -%}
  {{- '<|eom_id|>' if message['tool_calls'] and builtin else '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""


def chat_template(tool_format: ToolFormat = "json") -> str:
    """The template, in Jinja; `tool_format` is the one it writes functions in by default."""
    template = _TEMPLATE
    for name, text in {
        "DEFAULT_FORMAT": tool_format,
        "DEFAULT_DATE": dialog.DEFAULT_DATE,
        "ENVIRONMENT": dialog.ENVIRONMENT,
        "BUILTIN": dialog.BUILTIN,
        "DATES": dialog.DATES,
        "JSON_OFFER": dialog.JSON_OFFER,
        "PYTHONIC_OFFER": dialog.PYTHONIC_OFFER,
    }.items():
        template = template.replace(f"@{name}@", json.dumps(text))  # a literal in Jinja too
    return template
