"""Chat templates: messages -> the text that a chat model was trained on, rendered in jinja2's immutable sandbox, work and size bounded.

A template is a program that came with a model, so it is not trusted: no attribute of Python is reached, loops and macros are counted, and
no value grows beyond a bound. What templates may use: https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fishpaw.errors import CheckpointError, ConfigError, DataError, FishpawError
from fishpaw.files import blobs, inside
from fishpaw.text.budget import STEPS, TURN, Budget
from fishpaw.text.normalize import mend

if TYPE_CHECKING:
    from types import CodeType

    from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["read_template", "render"]

_LONGEST_TEMPLATE = 2**20                                       # characters
_KNOWN = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")
_FILTERS = frozenset((
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "indent", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
    "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper",
))
_ARGUMENTS = frozenset(("add_generation_prompt", "documents", "messages", "tools"))       # of `render`, which would replace such an option
_AT_ONCE = frozenset((                                          # filters that don't look at what is in the entries, or only one at a time
    "abs", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr", "reverse", "round", "safe",
    "select", "selectattr",
))
_GROWING = frozenset(("center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"))
_BACKWARDS = frozenset(("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"))
_COMPARED: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType({
    "eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "gteq": operator.ge, "lt": operator.lt, "lteq": operator.le,
    "in": lambda one, all: one in all, "notin": lambda one, all: one not in all,
})  # fmt: skip


def render(
    messages: Sequence[Mapping[str, object]],
    *,
    template: str,
    add_generation_prompt: bool = True,
    special: Mapping[str, str] | None = None,
    tools: Sequence[Mapping[str, object]] | None = None,
    documents: Sequence[Mapping[str, object]] | None = None,
    options: Mapping[str, object] | None = None,
) -> str:
    """The text of a conversation; encode it with special=False, for the template writes the special tokens itself.

    messages: {"role": "user", "content": "…"} each; content may be a list of parts, or None beside "tool_calls". special: what the
    template calls bos_token, eos_token …; options: its own switches, such as {"enable_thinking": False}.
    Raises DataError for a message of a wrong kind or one that the template refuses (with its reason), ConfigError for a template that is
    broken or does what it must not, for options of the names of arguments or special tokens, or without jinja2.

    >>> render([{"role": "user", "content": "你好"}], template=read_template("qwen"))
    """
    if not isinstance(template, str) or not template:
        raise ConfigError("there is no chat template.", fix="Give the text of chat_template.jinja.")
    if len(template) > _LONGEST_TEMPLATE:
        raise ConfigError(f"the chat template has {len(template):,} characters.", fix="Is it a template?")
    for name in options or {}:
        if name in _ARGUMENTS or name in (special or {}):
            own = name if name in _ARGUMENTS else "special"
            raise ConfigError(f"options holds {name!r}, which is not an option of a template.", fix=f"Give it to render as {own}.")
    template = mend(template)
    values: dict[str, object] = {key: mend(token) for key, token in (special or {}).items()}
    values |= {str(key): _plain(value, f"option {key!r}") for key, value in (options or {}).items()}
    values["messages"] = _checked(messages, template)
    values["tools"] = None if tools is None else _plain(list(tools), "tools")
    values["documents"] = None if documents is None else _plain(list(documents), "documents")
    values["add_generation_prompt"] = add_generation_prompt
    try:
        import jinja2
        from jinja2 import exceptions
    except ImportError as error:
        raise ConfigError("chat templates need the package jinja2.", fix='Run: pip install "fishpaw[chat]"') from error
    try:
        environment = _sandbox(Budget())
        compiled = jinja2.Template.from_code(environment, _compiled(template), environment.make_globals(None))
        return compiled.render(values)
    except FishpawError:
        raise
    except exceptions.SecurityError as error:
        said = str(error).rstrip(".")
        raise ConfigError(f"the chat template does what it must not: {said}.", fix="Don't use this template.") from error
    except exceptions.TemplateSyntaxError as error:
        said = str(error.message).rstrip(".")
        raise ConfigError(f"the chat template, line {error.lineno}: {said}.", fix="Correct the template.") from error
    except (exceptions.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, SyntaxError, TypeError,
            ValueError) as error:                               # SyntaxError: the Python that jinja2 makes of it, nested too deeply
        raise ConfigError(f"the chat template failed: {type(error).__name__}: {str(error).rstrip('.'):.200}.",
                          fix="Is it the template of this model, and complete?") from error


def read_template(folder: str | Path, *, name: str = "default") -> str | None:
    """The chat template of a model's folder: chat_template.jinja, else tokenizer_config.json's (the one called `name`, of several); None
    where there is none. Raises CheckpointError for a damaged file."""
    folder = Path(folder)
    file, config = (inside(folder, one, also=blobs(folder)) for one in ("chat_template.jinja", "tokenizer_config.json"))
    path = file if file.is_file() else config
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > 64 * _LONGEST_TEMPLATE:
            raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes.", fix="Fetch the file again.")
        text = path.read_text(encoding="utf-8")
        found = text if path == file else json.loads(text).get("chat_template")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{path}: can't be read as a template.", fix="Fetch the file again.") from error
    if isinstance(found, list):
        found = next((one.get("template") for one in found if isinstance(one, dict) and one.get("name") == name), None)
    if found is not None and not isinstance(found, str):
        raise CheckpointError(f"{path}: chat_template is a {type(found).__name__}.", fix="Fetch the file again.")
    return found


def _checked(messages: object, template: str) -> list[Any]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise DataError(f"messages is a {type(messages).__name__}.", fix='Give a list of {"role": "user", "content": "…"}.')
    out = []
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            raise DataError(f"{where} is a {type(message).__name__}: {message!r:.60}.", fix='Give {"role": "user", "content": "…"}.')
        role, said = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in _KNOWN and f'"{role}"' not in template and f"'{role}'" not in template:
            raise DataError(f"{where}: the role is {role!r:.60}.", fix=f"Use one of {', '.join(_KNOWN)}, or one that the template names.")
        parts = isinstance(said, list | tuple) and all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in said)
        if not (isinstance(said, str) or parts or said is None and message.get("tool_calls")):
            raise DataError(f"{where} ({role}): the content is a {type(said).__name__}.", fix='Give a string, or parts with a "type" each.')
        out.append(_plain(message, where))
    return out


def _plain(value: object, where: str) -> Any:
    """The same value of JSON's own types, so that a template meets no object with methods. DataError names the place of another type."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return mend(str.__str__(value))
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise DataError(f"{where}: a key is no string.", fix="Name fields by strings.")
        return {str(key): _plain(one, f"{where}, {key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{where}[{index}]") for index, one in enumerate(value)]
    raise DataError(f"{where}: a {type(value).__name__} can't be in a chat.", fix="Give strings, numbers, lists and dicts, as in JSON.")


@lru_cache(maxsize=16)
def _compiled(template: str) -> CodeType:
    """The template's code, with a step counted in every loop and macro."""
    from jinja2 import nodes

    environment = _sandbox(Budget())
    tree = environment.parse(template)
    for node in list[Any](tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        written = nodes.Const(sum(len(data.data) for data in node.find_all(nodes.TemplateData)))
        count = nodes.Call(nodes.EnvironmentAttribute("step"), [written], [], None, None)
        node.body.insert(0, nodes.Output([count]).set_lineno(node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:           # entries that are passed over are no turns, but looked at
            passed = nodes.Call(nodes.EnvironmentAttribute("step"), [nodes.Const(0)], [], None, None)
            node.test = nodes.And(nodes.Not(passed), node.test).set_lineno(node.lineno)

    def bounded(node: nodes.Node) -> None:
        for field, child in node.iter_fields():
            if isinstance(child, nodes.Node):
                bounded(child)
                setattr(node, field, swap(child))
            elif isinstance(child, list):
                for one in child:
                    if isinstance(one, nodes.Node):
                        bounded(one)
                setattr(node, field, [swap(one) if isinstance(one, nodes.Node) else one for one in child])

    def swap(node: nodes.Node) -> nodes.Node:
        if isinstance(node, nodes.Concat):                      # a ~ b can't be intercepted; joining strings can
            return nodes.Filter(nodes.List(node.nodes), "concat", [], [], None, None).set_lineno(node.lineno)
        if isinstance(node, nodes.List | nodes.Dict) or isinstance(node, nodes.Tuple) and node.ctx == "load":
            return nodes.Filter(node, "weighed", [], [], None, None).set_lineno(node.lineno)
        if isinstance(node, nodes.Compare):
            values, names = [node.expr, *(one.expr for one in node.ops)], nodes.Const(" ".join(one.op for one in node.ops))
            return nodes.Filter(nodes.List(values), "compared", [names], [], None, None).set_lineno(node.lineno)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            ends = [end or nodes.Const(None) for end in (node.arg.start, node.arg.stop, node.arg.step)]
            return nodes.Filter(node.node, "sliced", ends, [], None, None).set_lineno(node.lineno)
        return node

    bounded(tree)
    tree.set_environment(environment)
    return environment.compile(tree)


def _sandbox(budget: Budget) -> ImmutableSandboxedEnvironment:
    """transformers' environment, less what can write without end."""
    from jinja2 import exceptions, ext, pass_eval_context, utils
    from jinja2.runtime import Context, Undefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def replacing(text: str, old: object, new: object) -> None:
        if isinstance(old, str) and isinstance(new, str):
            budget.search(text, len(old))
            budget.room(len(text) + text.count(old) * len(new))

    class Generation(ext.Extension):
        """{% generation %} … {% endgeneration %} marks what the assistant says; here it is only the text between."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Namespace(utils.Namespace):
        def __setitem__(self, name: str, value: object) -> None:
            if name.startswith("_"):
                raise exceptions.SecurityError(f"a namespace has no {name!r}")
            super().__setitem__(name, value)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "**", "%", "//"))

        def step(self, written: int) -> str:
            return budget.step(written)

        def getitem(self, obj: Any, argument: Any) -> Any:
            if isinstance(argument, tuple):                     # hashed
                budget.read(argument)
            return super().getitem(obj, argument)

        def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
            raise exceptions.SecurityError(f"it asks for {attribute!r} of a {type(obj).__name__}")

        def wrap_str_format(self, value: Any) -> Any:
            """format without widths, which write without end."""
            wrapped = super().wrap_str_format(value)
            if wrapped is None:
                return None
            form = str(value.__self__)
            if ":" in form:
                raise exceptions.SecurityError("it formats with a width")

            def bounded(*args: Any, **named: Any) -> Any:
                budget.room(form.count("{") * budget.weigh([*args, named]) + len(form))
                return wrapped(*args, **named)

            return bounded

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            if operator == "+":
                if not isinstance(left, int | float):
                    budget.room(budget.weigh(left) + budget.weigh(right))
            elif operator == "*":
                budget.room(1000 * sum(one.bit_length() for one in (left, right) if isinstance(one, int)))
                for one, count in ((left, right), (right, left)):
                    if not isinstance(one, int | float) and isinstance(count, int):
                        budget.room(budget.weigh(one) * max(count, 0))
            elif operator == "**" and isinstance(left, int) and isinstance(right, int):
                budget.room(1000 * left.bit_length() * max(right, 0))
            elif operator == "%" and not isinstance(left, int | float):
                raise exceptions.SecurityError("it formats with %")
            elif isinstance(left, int):                         # % or //
                budget.room(1000 * left.bit_length())
            return super().call_binop(context, operator, left, right)

        # Two underscores, as jinja2 has it: a macro's own argument may be called self. Keywords pass through, none is dropped.
        def call(__self, __context: Any, __obj: Any, *args: Any, **named: Any) -> Any:
            owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
            if isinstance(owner, int | float) or isinstance(owner, bytes) and name != "decode":
                raise exceptions.SecurityError(f"it calls {name} of {type(owner).__name__}")
            given = [*args, *named.values()]
            if isinstance(owner, str):
                if name in _GROWING or name == "encode" and given:          # some codecs are quadratic
                    raise exceptions.SecurityError(f"it calls str.{name}")
                if name == "replace" and len(args) > 1:
                    replacing(owner, args[0], args[1])
                if name == "join" and args:
                    entries = list(args[0])
                    budget.room(budget.weigh(entries) + len(owner) * len(entries))
                    args = (entries,)
                elif name in ("startswith", "endswith"):
                    budget.read(given)
                else:
                    budget.search(owner, max((len(one) for one in given if isinstance(one, str)), default=0), backwards=name in _BACKWARDS)
            elif isinstance(owner, bytes):
                if given:
                    raise exceptions.SecurityError("it calls bytes.decode with a codec")
                budget.search(owner, 0)
            elif isinstance(owner, list | tuple) and name in ("count", "index") and args:
                budget.contain(args[0], owner)
            elif name == "changed":                             # of a loop: compares with the turn before
                budget.read(given)
            if __obj is dict or name == "fromkeys":
                raise exceptions.SecurityError("it calls a type")
            budget.work(TURN)
            found = super().call(__context, __obj, *args, **named)
            if isinstance(owner, str | bytes):
                budget.weigh(found)
            return budget.made(found) if name == "copy" else found

    def raise_exception(message: object) -> None:
        raise DataError(f"the chat template refuses these messages: {message!s:.300}.", fix="Give the messages in the order it asks for.")

    def tojson(value: object, ensure_ascii: bool = False, indent: int | str | None = None, separators: Any = None,
               sort_keys: bool = False) -> str:
        if isinstance(value, Undefined):
            raise exceptions.UndefinedError("tojson of a value that is not given")
        size = indent if isinstance(indent, int) else len(indent or "")
        budget.room(budget.weigh(value) * (1 + 8 * max(size, 0)))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        budget.room(len(form) * 100)
        if any(char.isdigit() for char in form):                # glibc pads to any width
            raise exceptions.SecurityError("it gives a width to strftime")
        return datetime.now().strftime(form)

    def namespace(*args: Any, **named: Any) -> Namespace:
        if any(name.startswith("_") for name in (*named, *(name for one in args for name in one))):
            raise exceptions.SecurityError("a namespace has no name with an underscore in front")
        return Namespace(*args, **named)

    def weighed(value: Any) -> Any:
        budget.weigh(value)
        return value

    def concat(values: list[object]) -> str:
        budget.room(budget.weigh(values))
        return "".join(map(str, values))

    def compared(values: list[Any], names: str) -> bool:
        for name, left, right in zip(names.split(), values, values[1:], strict=False):
            (budget.contain if name in ("in", "notin") else budget.compare)(left, right)
            if not _COMPARED[name](left, right):
                return False
        return True

    def sliced(value: Any, *ends: Any) -> Any:
        if isinstance(value, str | bytes | list | tuple):
            budget.room(len(range(*slice(*ends).indices(len(value)))))
        return budget.made(value[slice(*ends)])

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols], finalize=budget.write)
    known = environment.filters
    replace, indent, join, string = known["replace"], known["indent"], known["join"], known["string"]

    @pass_eval_context
    def filter_replace(context: Any, value: Any, old: str, new: str, count: int | None = None) -> Any:
        replacing(str(weighed(value)), old, new)
        return replace(context, value, old, new, count)

    @pass_eval_context
    def filter_join(context: Any, value: Any, d: str = "", attribute: str | int | None = None) -> Any:
        entries = list(value)
        budget.room(budget.weigh(entries) + len(d) * len(entries))
        return join(context, entries, d, attribute)

    def filter_indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
        size = width if isinstance(width, int) else len(width)
        text = weighed(value)
        budget.room((len(str(text)) if blank else str(text).count("\n") + 1) * max(size, 0))
        return indent(text, width, first, blank)

    def charged(name: str, function: Any) -> Any:
        @wraps(function)
        def filtered(*args: Any, **named: Any) -> Any:
            if name not in _AT_ONCE:
                args = tuple(list(one) if isinstance(one, Iterator) else one for one in args)
                budget.read([*args, *named.values()])
            if name == "trim":
                budget.search(str(args[0]), max(len(str(one)) for one in (*args[1:], *named.values(), "")), backwards=True)
            if name == "title":                                 # word by word, in Python
                budget.work(budget.weigh(args[0]) // 4)
            if name == "round" and any(isinstance(one, int) and abs(one) > 400 for one in (*args[1:], *named.values())):
                raise exceptions.SecurityError("it rounds to more than 400 digits")
            return budget.made(function(*args, **named))

        return filtered

    def tested(charge: Any, test: Any) -> Any:
        def found(*args: Any) -> Any:
            charge(*args)
            return test(*args)

        return found

    def counted(*args: int) -> range:
        found = range(*args)
        budget.work(min(len(found), STEPS + 1) if found.stop < 2**62 else STEPS + 1)
        return found

    def filter_string(value: Any) -> Any:
        return string(weighed(value))

    environment.filters = {name: charged(name, one) for name, one in known.items() if name in _FILTERS}
    environment.filters |= {"tojson": tojson, "weighed": weighed, "concat": concat, "replace": filter_replace, "indent": filter_indent,
                            "join": filter_join, "string": filter_string, "compared": compared, "sliced": sliced}
    tests = environment.tests
    tests |= {name: tested(budget.compare, one) for name, one in tests.items() if getattr(one, "__module__", "") == "_operator"}
    tests |= {name: tested(charge, tests[name])
              for name, charge in (("in", budget.contain), ("lower", budget.read), ("upper", budget.read))}
    environment.globals = {"range": counted, "namespace": namespace, "raise_exception": raise_exception,
                           "strftime_now": strftime_now, "dict": lambda *args, **named: weighed(dict(*args, **named)),
                           "cycler": environment.globals["cycler"], "joiner": environment.globals["joiner"]}
    return environment
