"""SmolLM2's chat template with tools.

The template in its GGUF file has no tools, so llama.cpp would silently leave a request's tools out of the prompt. For
conversations without tools and calls both templates render the same text: training and serving see the same prompts.
"""

CHAT_TEMPLATE = r"""
{%- set ns = namespace(tools='') -%}
{%- if tools -%}
  {%- set ns.tools = "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" -%}
  {%- set ns.tools = ns.tools + "You are provided with function signatures within <tools></tools> XML tags:" -%}
  {%- set ns.tools = ns.tools + "\n<tools>" -%}
  {%- for tool in tools -%}
    {%- set ns.tools = ns.tools + "\n" + (tool | tojson) -%}
  {%- endfor -%}
  {%- set ns.tools = ns.tools + "\n</tools>\n\nFor each function call, return a json object with function name and " -%}
  {%- set ns.tools = ns.tools + "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n" -%}
  {%- set ns.tools = ns.tools + '{"name": <function-name>, "arguments": <args-json-object>}' + "\n</tool_call>" -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if loop.first and message['role'] != 'system' -%}
    {{- '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face' -}}
    {{- ns.tools + '<|im_end|>\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') -}}
  {%- if loop.first and message['role'] == 'system' -%}{{- ns.tools -}}{%- endif -%}
  {%- if message.tool_calls -%}
    {%- for tool_call in message.tool_calls -%}
      {%- if not loop.first or message['content'] -%}{{- '\n' -}}{%- endif -%}
      {{- '<tool_call>\n{"name": "' + tool_call.function.name + '", "arguments": ' -}}
      {{- (tool_call.function.arguments | tojson) + '}\n</tool_call>' -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
""".strip()
