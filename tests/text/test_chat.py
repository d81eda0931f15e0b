"""Chat templates: what transformers renders, and what a hostile one is refused for. The templates are written for these tests."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest

from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.text.chat import read_template, render

pytest.importorskip("jinja2")
CHATML = """{%- if messages[0]['role'] != 'system' -%}<|im_start|>system
你是一个有用的助手。<|im_end|>
{% endif %}{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' ~ '\\n' }}
    {%- if loop.last and add_generation_prompt %}

        {{- '<|im_start|>assistant\\n' }}
    {%- endif %}
{%- endfor %}"""
LLAMA3 = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0]['content']|trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = "" %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- "\\n\\n" }}{% endfor %}
{%- endif %}
{{- system }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at once") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}<|eot_id|>
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
QWEN = """{%- macro show(content, first=true) -%}
    {%- if content is string %}{{- content }}{% else %}
    {%- for part in content %}{% if part.type == 'image' or 'image' in part %}<|image_pad|>
        {%- elif 'text' in part %}{{ part.text }}{% endif %}
    {%- endfor %}{% endif %}
{%- endmacro -%}
{%- set ns = namespace(tools=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.tools and message.role == "user" and not(message.content is string and message.content.startswith('<tool>')) %}
        {%- set ns.tools = false %}{% set ns.last = index %}{% break %}{% endif %}
{%- endfor %}
{%- if tools %}{{ "# Tools\\n" }}{% for tool in tools %}{{ "\\n" }}{{ tool | tojson }}{% endfor %}{{ "\\n" }}{% endif %}
{%- for message in messages %}
    {%- if message.role in ('user', 'system') %}{% if loop.index0 > 999 %}{% continue %}{% endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}{{ show(message.content, first=loop.first) }}{{ '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}{% set think = '' %}{% set content = message.content or '' %}
        {%- if '</think>' in content %}{% set think = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
        {%- generation %}{{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and think %}{{- '<think>\\n' + think.strip('\\n') ~ '\\n</think>\\n\\n' }}{% endif %}
        {{- content }}{% for call in message.tool_calls or [] %}{{- '\\n<tool_call>\\n{"name": "' }}{{ call.function.name }}", "arguments":
        {{- ' ' }}{{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{{- '<|im_end|>\\n' }}{% endgeneration %}
    {%- else %}{{- '<tool>' + message.content|string|replace('a', 'A') + '|' + [1, 2]|join(', ') + '|' }}
        {{- '{} {}'.format(1, 'x') }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "天气", "arguments": {"市": "<北京>&'"}}}],
}
PLAIN = [
    {"role": "system", "content": " 简短。 "},
    {"role": "user", "content": "你好\n <b>{{ x }}</b>"},
    {"role": "assistant", "content": "<think>\n嗯\n</think>\n\n好"},
    {"role": "user", "content": ""},
]
TALKS = {
    "plain": PLAIN,
    "one": PLAIN[1:2],
    "ends with the assistant": PLAIN[:3],
    "calls": [*PLAIN[:2], CALL, {"role": "tool", "content": "晴, a"}],
}
TOOLS = [{"type": "function", "function": {"name": "天气", "parameters": {"type": "object", "properties": {"市": {"type": "string"}}}}}]


@pytest.mark.parity
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", [CHATML, LLAMA3, QWEN], ids=["chatml", "llama3", "qwen"])
def test_the_text_is_transformers(template, talk, tools, prompt):
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    options = {"enable_thinking": False}
    theirs = render_jinja_template(
        [TALKS[talk]], tools=tools, chat_template=template, add_generation_prompt=prompt, bos_token="<s>", **options
    )[0][0]
    ours = render(TALKS[talk], template=template, add_generation_prompt=prompt, special={"bos_token": "<s>"}, tools=tools, options=options)
    assert ours == theirs and "<" in ours
    fault = template.replace("\\n", "\\t")  # the planted fault
    assert render(TALKS[talk], template=fault, add_generation_prompt=prompt, special={"bos_token": "<s>"}, options=options) != theirs


def test_parts_and_dates_render():
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "什么?"}]}]
    assert "<|image_pad|>什么?" in render(parts, template=QWEN)
    assert render(PLAIN, template="{{ strftime_now('%Y') }}") == time.strftime("%Y")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ range.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ self._TemplateReference__context }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ messages|attr('__class__') }}",
        "{{ ''['__class__'] }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ namespace.__init__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ tojson.__globals__ }}",
    ],
)
def test_nothing_of_python_is_reached(template):
    with pytest.raises(ConfigError, match="chat template"):
        render(PLAIN, template=template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(10**100) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ [1] * 10**10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**9) }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a'|center(10**9) }}",
        "{{ 'x'.zfill(10**9) }}",
        "{{ 'x'.encode().center(10**9) }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ '\t'.expandtabs(10**9) }}",
        "{{ [1]|tojson(indent=10**9) }}",
        "{{ 'a\nb'|indent(10**9) }}",
        "{{ lipsum(10**6) }}",
        "{{ ('x' * 10**7).replace('x', 'y' * 10**7) }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ [1]|batch(10**9, 'x')|list }}",
        "{{ [[1] * 99999] * 99999 }}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        *(
            "{% set ns = namespace(x='aa', y=[1], z=3) %}{% for i in range(99) %}{% set " + growth + " %}{% endfor %}{{ ns.x }}{{ ns.y }}"
            for growth in (
                "ns.x = ns.x ~ ns.x",
                "ns.x = ns.x + ns.x",
                "ns.x %}{{ ns.x }}{{ ns.x }}{% endset",
                "ns.x = ns.x.replace('a', 'aa')",
                "ns.x = ns.x|replace('a', 'aa')",
                "ns.x = ns.x.join([ns.x, ns.x])",
                "ns.x = [ns.x, ns.x]|join(ns.x)",
                "ns.x = [ns.x, ns.x]|string",
                "ns.y = [ns.y, ns.y]",
                "ns.y = {'a': ns.y, 'b': ns.y}",
                "ns.y = (ns.y, ns.y)",
                "ns.y = dict(a=ns.y, b=ns.y)",
                "ns.y = ns.y + ns.y",
                "ns.z = ns.z * ns.z",
                "ns.x = '{0}{0}'.format(ns.x)",
            "ns.x = ns.x.encode().replace('a'.encode(), 'aa'.encode()).decode()",
            )
        ),
    ],
)
def test_work_and_size_are_bounded(template):
    start = time.process_time()
    with pytest.raises(ConfigError, match="chat template"):
        render(PLAIN, template=template)
    assert time.process_time() - start < 10  # about 1 s, with room for a slower computer


LONG = "{% set s = 'aB c' * 1000000 %}{% set t = s ~ '' %}{% set n = 'b' ~ 'a' * 9000 %}{% set m = 'a' * 20000 %}{% set l = [[s], [s]] %}"


@pytest.mark.parametrize(
    "value",
    [
        *(f"s.{method}" for method in ("lower()", "split()", "strip('xyz')", "count('b')", "isalpha()", "rfind('Bc')")),
        *(f"s|{name}" for name in ("upper", "title", "trim", "escape", "trim(s)", "reverse", "list", "select('upper')|list")),
        *("'q' in s", "s not in t", "s == t", "s != t", "s <= t < t", "s is eq(t)", "s is in(t)", "s is lower", "l|sort"),
        *("s[1:]", "s[::2]", "(s,)[:1] == (t,)", "l[0] == l[1][:]", "l.index([t])", "loop.changed(s)"),
        *("m.rfind(n)", "m.rsplit(n)", "m.strip('b' * 9000)", "m[:2500].find(n[:1200] ~ 'b')"),
        *("5|round(-1000000000)", "(5).to_bytes(10**9)", "s.encode('punycode')", "(('f' * 10**7)|int(0, 16)) % 10**9"),
    ],
)
def test_work_on_long_strings_is_counted_by_their_length(value):
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"more than [0-9,]+ (steps|characters)|must not"):
        render(PLAIN, template=f"{LONG}{{% for i in range(99999) %}}{{% set x = {value} %}}{{% endfor %}}")
    assert time.process_time() - start < 10  # below 1 s; minutes, if a call cost the same whatever its string


@pytest.mark.parametrize("value", ["s.upper()", "s|upper", "s[1:]"])
def test_what_a_template_keeps_is_weighed(value):
    kept = "".join(f"{{% set v{number} = {value} %}}" for number in range(300))
    assert render(PLAIN, template="{% set s = 'a' * 800 %}" + kept) == ""
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="more than"):
            render(PLAIN, template="{% set s = 'a' * 8000000 %}" + kept)  # 2.4 GB, if they were let
        assert tracemalloc.get_traced_memory()[1] < 4e8
    finally:
        tracemalloc.stop()


def test_entries_that_a_loop_passes_over_are_counted():
    passed = "{% for i in range(99) %}{% for c in 'a' * 99999 if c == 'b' %}{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match="steps"):
        render(PLAIN, template=passed)
    assert render(PLAIN, template=passed.replace("99999", "99")) == ""


def test_comparisons_and_slices_are_pythons():
    given = ("1 < 2 <= 2 != 3", "1 < 2 > 2", "'a' in 'ba'", "'a' not in ['a']", "x in messages[0]", "x == y", "x in y")
    assert render(PLAIN, template=" ".join(f"{{{{ {one} }}}}" for one in given)) == "True False True False False True False"
    assert render(PLAIN, template="{{ 'abcdef'[1:-1:2] }} {{ [1, 2, 3][::-1] }} {{ 'abc'[:] }}") == "bd [3, 2, 1] abc"


@pytest.mark.parametrize(
    "template",
    [
        *("{% if %}", "{{ x.y }}", "{{ 1 / 0 }}", "{{ messages['a'].b }}", "", "x" * 2**21, "{{ tojson }", "{{ cycler() }}"),
        # What jinja2 writes of these is no Python.
        *("{% break %}", "{{ dict(a=1, a=2) }}", "{% macro m(a, a) %}{% endmacro %}"),
        "{% for a in messages %}" * 25 + "{% endfor %}" * 25,
        "{% if messages %}" * 120 + "{% endif %}" * 120,
    ],
)
def test_a_broken_template_is_one_clear_sentence(template):
    with pytest.raises(ConfigError, match="template"):
        render(PLAIN, template=template)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hi", "messages is a str"),
        ({"role": "user"}, "messages is a dict"),
        (["hi"], "message 0 is a str"),
        ([{"content": "a"}], "message 0: the role"),
        ([PLAIN[0], {"role": 3, "content": "a"}], "message 1: the role is 3"),
        ([{"role": "usr", "content": "a"}], "'usr'"),
        ([{"role": "user"}], "content is a NoneType"),
        ([{"role": "user", "content": 3}], "content is a int"),
        ([{"role": "user", "content": ["a"]}], "content is a list"),
        ([{"role": "user", "content": "a", "more": object()}], "message 0, more: a object"),
        ([{"role": "user", "content": "a", 3: "b"}], "key"),
        ([{"role": "user", "content": "a", "tool_calls": 3}], "one call at once|chat template"),
    ],
)
def test_a_wrong_message_is_named(messages, said):
    with pytest.raises((DataError, ConfigError), match=said) as caught:
        render(messages, template=LLAMA3)
    assert isinstance(caught.value, DataError) or "template" in said


def test_a_template_may_refuse_messages_and_name_roles_of_its_own():
    with pytest.raises(DataError, match="one call at once"):
        render([{**CALL, "tool_calls": CALL["tool_calls"] * 2}], template=LLAMA3)
    assert render([{"role": "critic", "content": "a"}], template="{% if messages[0].role == 'critic' %}c{% endif %}") == "c"
    assert render([{"role": "user", "content": "a\ud800"}], template="{{ messages[0].content }}") == "a\ufffd"


def test_long_chats_fit_the_bounds():
    talk = [{"role": ("user", "assistant")[number % 2], "content": "今天天气" * 500} for number in range(500)]
    assert len(render(talk, template=CHATML)) > 10**6 and len(render(talk, template=QWEN)) > 10**6


def test_templates_are_read_from_a_folder(tmp_path):
    assert read_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": CHATML}), encoding="utf-8")
    assert read_template(tmp_path) == CHATML
    config.write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]}), encoding="utf-8"
    )
    assert (read_template(tmp_path), read_template(tmp_path, name="rag"), read_template(tmp_path, name="no")) == ("a", "b", None)
    (tmp_path / "chat_template.jinja").write_text("c", encoding="utf-8")
    assert read_template(tmp_path) == "c"
    (tmp_path / "chat_template.jinja").unlink()
    for broken in ("{", "[]", '{"chat_template": 3}'):
        config.write_text(broken, encoding="utf-8")
        with pytest.raises(CheckpointError, match="tokenizer_config"):
            read_template(tmp_path)


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt", "bos_token"])
def test_options_of_the_names_of_arguments_are_refused(name):
    with pytest.raises(ConfigError, match=f"options holds '{name}'.*as {'special' if name == 'bos_token' else name}"):
        render([{"role": "user", "content": "好"}], template=CHATML, special={"bos_token": "<s>"}, options={name: None})
