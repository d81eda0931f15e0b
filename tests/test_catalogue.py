"""The catalogue of switches (docs/*/switches): a heading for every value there is, code that runs, and the refusals of the model itself."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import fishpaw
from fishpaw import activations, switch
from fishpaw.attention.linear import KINDS
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.weights import load

torch.set_num_threads(1)
DOCS = Path(__file__).resolve().parent.parent / "docs"
LANGUAGES = ("en", "zh")
LABELS = {"en": ("Paper", "Cost", "Refuses", "Weights"), "zh": ("论文", "代价", "不能同用", "权重")}
NOTHING = {"en": "nothing.", "zh": "无。"}
ROOMS = {"attention": "attention", "positions": "position", "masks": "mask", "norms": "norm", "model": "block", "model.heads": "heads"}
SHAPE = ModelConfig(97, 64, 2, 4, 128)
RULES = ("window", "exclude_self")
BESIDE = {                                                           # what a switch can't be turned without
    'stream="positions"': {"exclude_self": True},
    "shared_embedding=True": {"encoder": SHAPE},
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One value: `heading` is the Python to write, `level` 2 for a value, 3 for an option of it. words: all prose above the fields."""

    page: str
    level: int
    heading: str
    code: str
    words: str
    fields: dict[str, str]


def sections(language: str, page: str, text: str) -> list[Section]:
    found = []
    intro, *rest = re.split(r"^(?=##)", text, flags=re.M)
    for one in rest:
        head = re.match(r"(#+) `([^`\n]+)`\n", one)
        assert head, f"{language}/{page}: a heading without code: {one.splitlines()[0]}"
        code = re.findall(r"```python\n(.*?)```", one, re.S)
        assert len(code) == 1, f"{language}/{page}, {head[2]}: {len(code)} pieces of code"
        words, _, after = one[head.end() :].partition("```python")
        items = re.findall(r"^- ([^:：]+)[:：]\s*(.*?)\s*(?=^- |\Z)", after.partition("```")[2], re.S | re.M)
        found.append(Section(page, len(head[1]), head[2], code[0], intro + words, {name: " ".join(value.split()) for name, value in items}))
    return found


def texts(language: str) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted((DOCS / language / "switches").glob("*.md"))}


@cache
def catalogue(language: str) -> tuple[Section, ...]:
    return tuple(one for page, text in texts(language).items() if page != "index.md" for one in sections(language, page, text))


def means(heading: str) -> dict[str, Any]:
    """The fields of ModelConfig that a heading sets; a mask's rules and the features of linear attention stand by themselves."""
    return {**eval(f"dict({heading})", {"fp": fishpaw}), **BESIDE.get(heading, {})}


def together(*many: dict[str, Any]) -> dict[str, Any] | None:
    """All of them as one change; None where two give one field different values. Heads add up, rules join their mask."""
    made: dict[str, Any] = {}
    rules: dict[str, Any] = {}
    for changes in many:
        for field, value in changes.items():
            if field in RULES:
                rules[field] = value
            elif field == "features":
                made["attention"] = {"name": "linear", field: value}
            elif field == "heads":
                made[field] = [*made.get(field, []), *(one for one in value if one not in made.get(field, []))]
            elif field == "encoder":
                made[field] = value.change({"vocab_size": SHAPE.vocab_size})
            elif made.setdefault(field, value) != value:
                return None
    if rules:
        if isinstance(made.get("mask"), list):
            return None
        made["mask"] = {"name": made.get("mask", "full"), **rules}
    if made.get("shared_embedding"):
        made["encoder"] = made["encoder"].change({"embedding_size": made.get("embedding_size")})
    return made


def is_refused(*headings: str) -> bool:
    changes = together(*(means(heading) for heading in headings))
    assert changes is not None, f"{headings} give one field two values"
    try:
        with torch.device("meta"):
            Transformer(SHAPE.change({"encoder": None, **changes}))
    except ConfigError:
        return True
    return False


# Every value has its place.

def without_heading(found: list[str]) -> list[str]:
    """The values that no heading names. Heads stand in a list, with those that they need."""
    values = {field: set() for field in ROOMS.values()}
    for heading in found:
        for field, value in means(heading).items():
            specs = value if isinstance(value, list) else [value]
            if field in values and (field == "heads" or len(specs) == 1):
                values[field].add(switch.spec_name(specs[-1]))
    lacking = [f"{field}={name!r}" for room, field in ROOMS.items() for name in switch.names(room) if name not in values[field]]
    plain = [name for name in activations.NAMES if activations.NAMES[name].__name__ == name]
    others = {"activation": [*plain, *activations.GATED], "features": list(KINDS), "norm_at": ["post", "pre", "mixed"]}
    return lacking + [f"{field}={name!r}" for field, names in others.items() for name in names if f'{field}="{name}"' not in found]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_value_has_a_heading_of_its_own(language):
    found = [section.heading for section in catalogue(language)]
    assert len(set(found)) == len(found)
    assert not without_heading(found)
    for gone in ('position="nezha"', 'activation="swiglu"', 'heads=["mlm"]', 'mask="unilm"'):       # planted: a part without a page
        assert len(without_heading([heading for heading in found if heading != gone])) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_other_name_and_every_option_is_in_the_section_or_above_it(language):
    by_heading = {section.heading: section for section in catalogue(language)}
    for name, function in activations.NAMES.items():
        words = by_heading[f'activation="{function.__name__}"'].words
        assert name == function.__name__ or f"`{name}`" in words, f"{name} isn't named beside {function.__name__}"
    for section in by_heading.values():
        for room, field in ROOMS.items():
            value = means(section.heading).get(field)
            if value is None or (isinstance(value, list) and field != "heads"):
                continue
            name = switch.spec_name(value[-1] if isinstance(value, list) else value)
            maker = getattr(__import__(f"fishpaw.{room}", fromlist=[name]), name)
            options = inspect.signature(getattr(maker, "build", maker)).parameters.values()
            for option in (one.name for one in options if one.kind is one.KEYWORD_ONLY and one.name not in RULES):
                assert f"`{option}`" in section.words, f"{section.heading}: nothing on {option!r}"


def test_the_languages_have_the_same_pages_headings_and_code():
    def outline(language: str) -> list[tuple[str, int, str, str]]:
        return [(one.page, one.level, one.heading, re.sub(r" *#.*", "", one.code)) for one in catalogue(language)]

    assert outline("en") == outline("zh")


@pytest.mark.parametrize("language", LANGUAGES)
def test_sections_are_whole_and_the_index_names_each(language):
    index = texts(language)["index.md"]
    for section in catalogue(language):
        wanted = LABELS[language][: 4 if section.level == 2 else 2]
        assert tuple(section.fields) == wanted and all(section.fields.values()), f"{section.heading}: {list(section.fields)}"
        row = next((line for line in index.splitlines() if f"]({section.page})" in line), "")
        assert f"`{section.heading}`" in row, f"index: no {section.heading} beside {section.page}"
    for page, text in texts(language).items():
        for target in re.findall(r"\]\(([^)#]+\.md)\)", text):
            assert (DOCS / language / "switches" / target).is_file(), f"{page} leads to {target}"


# The code runs.

def run(code: str, heading: str) -> str | None:
    """What is wrong with a snippet, if anything: it must print the shapes that it says, of a model that has what the heading says."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, heading, "exec"), names)
    promised = re.findall(r"print\(.*#\s*(\[.*\])", code)
    printed = re.findall(r"torch\.Size\((\[.*\])\)", said.getvalue())
    if not promised or printed != promised:
        return f"prints {printed}, says {promised}"
    config, given = names["model"].config, means(heading)
    rules = {field: given.pop(field) for field in RULES if field in given}
    if "encoder" not in heading:
        given.pop("encoder", None)
    if "features" in given:
        given = {"attention": {"name": "linear", **given}}
    held = switch.spec_options(config.mask)
    return None if config.change(given) == config and all(held.get(rule) == value for rule, value in rules.items()) else f"is no {heading}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_snippet_runs_and_prints_what_it_says(language):
    wrong = {section.heading: complaint for section in catalogue(language) if (complaint := run(section.code, section.heading))}
    assert not wrong


def test_a_snippet_of_another_switch_or_shape_is_found():
    good = next(section for section in catalogue("en") if section.heading == 'attention="sparse"')
    assert run(good.code, good.heading) is None
    assert "is no" in str(run(good.code, 'attention="taylor"'))
    assert "says" in str(run(good.code.replace("[2, 7, 64]", "[2, 64, 7]"), good.heading))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """A folder a family that the pages name."""
    families = {
        "bert": {"heads": ("pooler", "mlm")},
        "roformer": {"position": "rotary"},
        "llama": {"position": {"name": "rotary", "layout": "half"}, "norm": "rms", "norm_at": "pre", "mask": "causal", "segments": 0,
                  "embedding_norm": False, "biases": (), "dropout": 0.0, "activation": "swiglu", "heads": ("lm",)},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("families")
    for family, options in families.items():
        fishpaw.save(Transformer(SHAPE.change({"family": family, **options})), folder / family)
    return {family: str(folder / family) for family in families}


@pytest.mark.parametrize("language", LANGUAGES)
def test_checkpoints_load_as_the_pages_say(language, checkpoints):
    told = [section.fields.get(LABELS[language][3], "") for section in catalogue(language)]
    calls = sorted({call for line in told for call in re.findall(r"`((?:fp\.load_model|inspect)\(.*?\))`", line)})
    assert len(calls) > 15
    for call in calls:
        made = eval(call, {"fp": fishpaw, "inspect": load.inspect, **checkpoints})
        model = made[0] if isinstance(made, tuple) else made
        condition = torch.randn(2, 16) if model.conditional else None
        assert bool(torch.isfinite(model(torch.randint(97, (2, 7)), condition=condition).hidden).all()), call


# What can't stand together.

def claims(found: tuple[Section, ...], language: str) -> dict[str, set[str]]:
    """Heading -> the headings that its line of refusals names. Level 2 alone: options are refused as what they belong to."""
    lines = {section.heading: section.fields[LABELS[language][2]] for section in found if section.level == 2}
    named = {heading: set(re.findall(r"`([^`]+)`", line)) & lines.keys() for heading, line in lines.items()}
    for heading, line in lines.items():
        assert bool(named[heading]) != (line == NOTHING[language]), f"{heading}: {line}"
    return named


def wrong_claims(named: dict[str, set[str]]) -> list[str]:
    """Where a page and the model disagree. Pairs that are said to work are built many at once: one cell holds a value of every field."""
    complaints = [f"{one} names {other}, not the reverse" for one in named for other in named[one] if one not in named[other]]
    told = {frozenset((one, other)) for one in named for other in named[one]}
    complaints += [f"{' and '.join(sorted(pair))} work" for pair in told if not is_refused(*pair)]
    meant = {heading: means(heading) for heading in named}
    open_pairs = {
        frozenset(pair) for pair in itertools.combinations(named, 2)
        if frozenset(pair) not in told and together(*(meant[one] for one in pair)) is not None
    }  # fmt: skip
    missing = dict.fromkeys(pair for pair in map(frozenset, itertools.combinations(named, 2)) if pair in open_pairs)
    while missing:
        cell = list(next(iter(missing)))
        for heading in sorted(named, key=lambda heading: -sum(frozenset((heading, one)) in missing for one in cell)):
            if heading not in cell and all(frozenset((heading, one)) in open_pairs for one in cell):
                cell.append(heading)
        pairs = [frozenset(pair) for pair in itertools.combinations(cell, 2)]
        if is_refused(*cell):
            complaints += [f"{' and '.join(sorted(pair))} are refused" for pair in pairs if is_refused(*pair)]
        for pair in pairs:
            missing.pop(pair, None)
    return complaints


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_said_to_be_refused_is_and_everything_else_is_built(language):
    named = claims(catalogue(language), language)
    assert named == claims(catalogue("en"), "en")
    if language == "en":                                             # the model is asked once
        assert not wrong_claims(named)


def test_a_refusal_that_is_forgotten_or_invented_is_found():
    kinds = ('attention="softmax"', 'attention="linear"', 'position="nezha"', 'position="rotary"', "residual_scores=True")
    true = {heading: set() for heading in kinds}
    true['attention="linear"'] = {'position="nezha"', "residual_scores=True"}
    true['position="nezha"'] = true["residual_scores=True"] = {'attention="linear"'}
    assert not wrong_claims(true)
    assert wrong_claims({**true, 'position="rotary"': {'attention="softmax"'}, 'attention="softmax"': {'position="rotary"'}})
    assert wrong_claims({**true, 'attention="linear"': {'position="nezha"'}, "residual_scores=True": set()})
    assert wrong_claims({**true, "residual_scores=True": set()}) == ['attention="linear" names residual_scores=True, not the reverse']
