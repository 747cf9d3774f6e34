"""Small tokenizers whose chat templates have tools, in the manner of Qwen 2.5 and of Llama 3.1."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.tiny_models import BOS, EOS, PAD, make_tokenizer

QWEN = r"""{%- if tools %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + "\n\n# Tools\n\n<tools>" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools>\n\n<tool_call>\n{\"name\": <name>, \"arguments\": <arguments>}\n</tool_call><|im_end|>\n" }}
{%- else %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {{- '\n<tool_call>\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
            {{- tool_call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

LLAMA = r"""{{- '<|im_start|>system\n\n' + messages[0]['content'] | trim + '<|im_end|>' }}
{%- for message in messages[1:] %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>ipython\n\n' }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- '<|im_end|>' }}
    {%- elif message.tool_calls %}
        {%- set function = message.tool_calls[0].function %}
        {{- '<|im_start|>assistant\n\n{"name": "' + function.name + '", "parameters": ' }}
        {{- function.arguments | tojson }}{{- '}<|im_end|>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n\n' }}
        {%- if loop.first and tools %}
            {{- 'Answer with a JSON for a function call.\n\n' }}
            {%- for tool in tools %}{{- tool | tojson(indent=4) + '\n\n' }}{%- endfor %}
        {%- endif %}
        {{- message.content | trim + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}"""


def tokenizer(template: str) -> Any:
    """It has tokens for tool calls that are not registered as special, as Qwen's."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    made.add_tokens(["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>"])
    made.chat_template = template
    return made
