"""The grid: every attention x position x mask x norm x residual; a cell is built and lawful, or refused by a message that names both.

Default: a cover of every pair of values that can stand together, and every pair that can't; the shapes of heads and the gated attention
unit are a sixth axis of it. Slow: every cell there is. A part that is added as a file is in the grid by its file; its options here, in
OPTIONS, only make its reach small enough for texts of a dozen tokens.

fp64, tolerance 1e-9 of the largest logit: only the order of sums differs.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fishpaw import switch
from fishpaw.attention.linear import KINDS
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch, Position
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
LENGTHS = (7, 3, 11, 1, 10)
SIZE = 53
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"features": features} for features in sorted(KINDS)],
    "performer": [{"features": 13}, {"features": 7, "kind": "hyperbolic"}],
    "sparse": [{"k": 3}],
    "taylor": [{}, {"order": 4}],
    "hierarchical": [{"alpha": 0.4}],
    "nezha": [{"reach": 4}],
    "rerope": [{"window": 3}, {"window": 4, "log_n": 5}],
    "leaky_rerope": [{"window": 3, "stretch": 2.0}],
    "buckets": [{"buckets": 8, "distance": 12}],
    "rotary": [{}, {"layout": "half", "share": 0.5, "log_n": 5}],
    "rotary_yarn": [{"factor": 4.0, "original_length": 8}],
    "rotary_llama3": [{"factor": 4.0, "original_length": 8, "theta": 100.0}],
    "conditional": [{"condition": 3}],
}


def specs(room: str) -> list[dict[str, Any]]:
    return [{"name": name, **options} for name in switch.names(room) for options in OPTIONS.get(name, [{}])]


ATTENTION = [{"attention": spec} for spec in specs("attention")]
MASK = [{"mask": {"name": clock, **rule}} for clock in switch.names("masks") for rule in ({}, {"window": 3}, {"exclude_self": True})]
AXES: list[list[dict[str, Any]]] = [
    ATTENTION,
    [{"position": spec} for spec in specs("positions")],
    [*MASK, {"mask": {"name": "full", "exclude_self": True}, "stream": "positions"}],               # the last: T-TA
    [{"norm": norm, "norm_at": at} for norm, at in itertools.product(specs("norms"), ("post", "pre", "mixed")) if norm["name"] != "none"],
    [{"residual_scores": False}, {"residual_scores": True}],
    [{}, {"key_value_heads": 1}, {"qk_norm": True}, {"block": "gau", "attention_heads": 1}],
]
NAMED = 5
"""Axes of the full product; the sixth is in the cover alone."""
LINEAR = ("efficient", "linear", "performer")
NEEDS_SCORES = {"bias", "score", "mix"}
Cell = tuple[int, ...]


def changes(cell: Cell) -> dict[str, Any]:
    return {key: value for axis, value in zip(AXES, cell, strict=False) for key, value in axis[value].items()}


def made(options: dict[str, Any], *, std: float = 0.6, dtype: torch.dtype = torch.float64) -> Transformer:
    torch.manual_seed(0)                                             # conditional norms start blind to their condition
    shape = {"vocab_size": SIZE, "hidden_size": 14, "layers": 2, "attention_heads": 3, "head_size": 4, "intermediate_size": 15,
             "init_std": std, "max_positions": 7 if "hierarchical" in str(options["position"]) else 37, "dropout": 0.0,
             "attention_dropout": 0.0, "heads": ("lm",), "segments": 2}
    model = Transformer(ModelConfig(**{**shape, **options})).to(dtype).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        if name.endswith(("scale.weight", "shift.weight")):
            torch.nn.init.normal_(value, std=0.3)
    return model


def why_not(options: dict[str, Any]) -> str | None:
    """The switch that the attention can't stand beside, for a reason of mathematics, or None."""
    name, mask = options["attention"]["name"] if isinstance(options["attention"], dict) else options["attention"], options["mask"]
    if name not in LINEAR:
        return None
    hooks = switch.build("positions", options["position"], ModelConfig(SIZE, 12, 2, 3, 17)).hooks()
    if hooks & NEEDS_SCORES:
        return switch.spec_name(options["position"])
    if "window" in mask or (name == "efficient" and (mask["name"] != "full" or "exclude_self" in mask)):
        return str(mask["name"])
    return "residual_scores" if options["residual_scores"] else None


# The laws. Each is given a model that is lawful, or broken on purpose (below).

def texts(lengths: tuple[int, ...] = LENGTHS) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Sequences of different tokens (no ties among scores), and segments: a source, then a target."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randperm(SIZE, generator=generator)[:length] for length in lengths]
    return ids, [(torch.arange(length) >= (length + 1) // 2).long() for length in lengths]


def told(model: Transformer, rows: int, first: int = 0) -> torch.Tensor | None:
    """A condition for each row, where the norms of the model read one."""
    if not model.conditional:
        return None
    every = torch.randn(9, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return every[first : first + rows].to(model.table.dtype)


def laid(ids: list[torch.Tensor], segments: list[torch.Tensor], condition: torch.Tensor | None, *, left: bool) -> Batch:
    width = max(map(len, ids))
    cells, kinds, keep = (torch.zeros(len(ids), width, dtype=torch.long) for _ in range(3))
    for row, (one, kind) in enumerate(zip(ids, segments, strict=True)):
        place = slice(width - len(one), width) if left else slice(0, len(one))
        cells[row, place], kinds[row, place], keep[row, place] = one, kind, 1
    return Batch.padded(cells, keep=keep.bool(), segments=kinds, condition=condition)


def read(model: Transformer, one: torch.Tensor, kind: torch.Tensor, row: int) -> torch.Tensor:
    """The logits of one text, alone, [t v]; `row` chooses its condition."""
    logits: torch.Tensor = model(one[None], segments=kind[None], condition=told(model, 1, row)).logits[0]
    return logits


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    assert found.shape == expected.shape and bool(torch.isfinite(found).all())
    away = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
    assert away < tolerance, f"{away:.1e}"


def same_however_laid(model: Transformer) -> None:
    """One by one = padded right = padded left = packed."""
    ids, segments = texts()
    expected = torch.cat([read(model, one, kind, row) for row, (one, kind) in enumerate(zip(ids, segments, strict=True))])
    condition = told(model, len(ids))
    for left in (False, True):
        batch = laid(ids, segments, condition, left=left)
        close(torch.cat(batch.unpack(model(batch).logits.flatten(0, 1))), expected)
    packed = Batch.packed(ids, segments=segments, condition=condition)
    close(torch.cat(packed.unpack(model(packed).logits)), expected)


def same_cached(model: Transformer) -> None:
    """Prompts of different lengths, two beams of one of them, steps of one and of two tokens = every row read whole."""
    if model.mask.clock == "full":
        return
    ids, segments = texts((5, 2))
    generated = int(model.mask.clock == "unilm")
    rows = [(ids[0], segments[0], 0), (ids[1], segments[1], 1)]
    stepper = TransformerStepper(model)

    def whole(new: int) -> torch.Tensor:
        return torch.stack([read(model, *row)[-new:] for row in rows])

    close(stepper.start(laid(ids, segments, told(model, 2), left=False)), whole(1)[:, 0])
    stepper.select(torch.tensor([0, 0, 1]))
    rows = [rows[0], rows[0], rows[1]]
    for turn, tokens in enumerate(torch.arange(31, 43).split((3, 6, 3))):
        tokens = tokens.view(3, -1)
        new = tokens.shape[1]
        found = stepper.step(tokens[:, 0] if new == 1 else tokens)
        rows = [(torch.cat((one, more)), torch.cat((kind, torch.full_like(more, generated))), row)
                for (one, kind, row), more in zip(rows, tokens, strict=True)]
        close(found[:, None] if new == 1 else found, whole(new))
        if turn == 0:
            stepper.select(torch.tensor([1, 0, 2]))
            rows = [rows[1], rows[0], rows[2]]


def blind_to_what_is_hidden(model: Transformer) -> None:
    """The gradient of a logit by a vector that its mask hides is 0, and all gradients are finite, those of a lone token, too."""
    ids, segments = torch.arange(9)[None], (torch.arange(9) >= 4).long()[None]
    vectors = model.table[ids[0]].clone().requires_grad_()
    logits = model(ids, segments=segments, embedded=vectors, condition=told(model, 1)).logits[0]
    mask, stream = model.mask, model.config.stream == "positions"
    time = mask.times(torch.arange(9)[None], segments)[0]
    for place in (2, 6):
        seen = torch.autograd.grad(logits[place].sin().sum(), vectors, retain_graph=True)[0].abs().amax(-1) > 0
        assert not bool((seen & (time > time[place])).any()), "sees what comes later"
        assert not (stream and bool(seen[place])), "sees itself"
    model.requires_grad_()
    for own in model.buffers():
        own.requires_grad_(False)
    batch = laid(*texts((5, 1)), told(model, 2), left=True)
    model(batch).logits[batch.rows[0].keep].square().mean().backward()
    assert all(bool(torch.isfinite(one.grad).all()) for one in model.parameters() if one.grad is not None), "a gradient is not finite"
    model.zero_grad()
    model.requires_grad_(False)


def near_in_half_the_digits(options: dict[str, Any]) -> None:
    """bf16 = fp64 to two digits, at weights small enough for layers not to amplify its rounding. Top-k scores may swap places."""
    exact, half = made(options, std=0.15), made(options, std=0.15, dtype=torch.bfloat16)
    half.load_state_dict(exact.state_dict())
    near(exact, half)


def near(exact: Transformer, half: Transformer) -> None:
    batches = [laid(*texts(), told(model, len(LENGTHS)), left=False) for model in (exact, half)]
    keep = batches[0].rows[0].keep
    expected, found = (model(batch).hidden[keep].double() for model, batch in zip((exact, half), batches, strict=True))
    assert bool(torch.isfinite(found).all())
    cosine = torch.nn.functional.cosine_similarity(expected, found, dim=-1).mean()
    assert float(cosine) > 0.98, f"{float(cosine):.3f}"


def check(options: dict[str, Any]) -> None:
    """Every law of a cell that can be, or the refusal of one that can't."""
    refused = why_not(options)
    if refused is not None or unable(options):
        with pytest.raises(ConfigError) as caught:
            made(options)
        reasons = [names for names in ((switch.spec_name(options["attention"]), refused), unable(options)) if all(names)]
        said = [all(str(name) in str(caught.value) for name in names) for names in reasons if names]
        assert any(said) and caught.value.fix, caught.value          # of two that hold, either may be told
        return
    model = made(options)
    same_however_laid(model)
    if options.get("stream") != "positions":
        same_cached(model)
    blind_to_what_is_hidden(model)
    near_in_half_the_digits(options)


def unable(options: dict[str, Any]) -> tuple[str, ...]:
    """The two switches, by name, that can't stand together whatever the attention. A gated attention unit has no feed-forward to put mixed
    norms around; the norms of queries and keys see no condition."""
    if options.get("block") == "gau" and options["norm_at"] == "mixed":
        return "gated attention unit", "mixed"
    return ("qk_norm", "conditional") if options.get("qk_norm") and "conditional" in str(options["norm"]) else ()


# The cells.

def cover(axes: list[list[dict[str, Any]]], allowed: Any, seed: int = 0) -> list[Cell]:
    """A small set of allowed cells in which every pair of values that some allowed cell holds stands together."""
    chance = random.Random(seed)
    sizes = [len(axis) for axis in axes]
    missing = {(i, a, j, b) for i, j in itertools.combinations(range(len(axes)), 2) for a in range(sizes[i]) for b in range(sizes[j])}
    cells: list[Cell] = []
    for i, a, j, b in sorted(missing):
        if (i, a, j, b) not in missing:
            continue
        best, most = None, 0
        for _ in range(60):
            cell = tuple(a if axis == i else b if axis == j else chance.randrange(size) for axis, size in enumerate(sizes))
            if allowed(cell):
                gain = sum(pair in missing for pair in pairs(cell))
                best, most = (cell, gain) if gain > most else (best, most)
        if best is not None:
            cells.append(best)
            missing -= set(pairs(best))
    return cells


def pairs(cell: Cell) -> Iterator[tuple[int, int, int, int]]:
    for i, j in itertools.combinations(range(len(cell)), 2):
        yield i, cell[i], j, cell[j]


def can_be(cell: Cell) -> bool:
    return why_not(changes(cell)) is None and not unable(changes(cell))


def label(cell: Cell) -> str:
    def words(value: object) -> list[str]:
        return [str(one) for one in value.values()] if isinstance(value, dict) else [str(value)]

    return "-".join("+".join(word for value in axis[number].values() for word in words(value))
                    for axis, number in zip(AXES, cell, strict=False))


COVER = cover(AXES, can_be)
EVERY = list(itertools.product(*(range(len(axis)) for axis in AXES[:NAMED])))


@pytest.mark.parametrize("cell", COVER, ids=label)
def test_a_cover_of_all_pairs_is_lawful(cell: Cell) -> None:
    check(changes(cell))


@pytest.mark.parametrize("attention", range(len(ATTENTION)), ids=lambda number: str(ATTENTION[number]))
def test_every_pair_that_can_not_be_is_refused_by_name(attention: int) -> None:
    for cell in EVERY:
        if cell[0] == attention and cell[3] == 0 and why_not(changes(cell)) is not None:
            check(changes(cell))


def test_only_linear_kinds_refuse_and_only_what_needs_scores_windows_or_a_future() -> None:
    refused = [changes(cell) for cell in EVERY if cell[3] == 0 and why_not(changes(cell)) is not None]
    assert refused and {switch.spec_name(one["attention"]) for one in refused} == set(LINEAR)
    assert len(COVER) < len(EVERY) / 20


def test_what_no_attention_changes_is_refused_by_name() -> None:
    shapes = [changes((0, position, 0, norm, 0, shape)) for position in range(len(AXES[1])) for norm in range(len(AXES[3]))
              for shape in range(len(AXES[5]))]
    refused = [options for options in shapes if unable(options)]
    assert {unable(options) for options in refused} == {("gated attention unit", "mixed"), ("qk_norm", "conditional")}
    for options in refused:
        check(options)


@pytest.mark.slow
@pytest.mark.parametrize("attention", range(len(ATTENTION)), ids=lambda number: str(ATTENTION[number]))
@pytest.mark.parametrize("position", range(len(AXES[1])), ids=lambda number: str(AXES[1][number]["position"]))
@pytest.mark.timeout(1800)
def test_every_cell_is_lawful(attention: int, position: int) -> None:
    for cell in EVERY:
        if cell[:2] == (attention, position):
            check(changes(cell))


# Planted faults: each law finds the one that breaks it.

class Widths(Position):
    """Reads the width of the rectangle where it should read positions."""

    def embed(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        return x + len(pos) / 50 * torch.arange(x.shape[1])


class Ahead(Position):
    """Adds the mean of the whole batch: a look at everybody."""

    def embed(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        return x + x.mean(0)


def test_half_the_digits_that_are_not_enough_are_found() -> None:
    exact, half = made(PLAIN, std=0.15), made(PLAIN, std=0.15, dtype=torch.bfloat16)
    half.load_state_dict(exact.state_dict())
    near(exact, half)
    half.layers[1].feed_forward_norm.weight[:2].neg_()               # two units of fourteen with a wrong sign
    with pytest.raises(AssertionError, match=r"0\."):
        near(exact, half)


PLAIN = {"attention": "softmax", "position": "none", "mask": {"name": "causal"}, "norm": "layer", "norm_at": "post",
         "residual_scores": False}


def test_a_position_that_reads_the_width_of_the_batch_is_found() -> None:
    broken = made({**PLAIN, "position": lambda config: Widths()})
    for law in (same_however_laid, same_cached):
        with pytest.raises(AssertionError):
            law(broken)


def test_a_position_that_reads_the_future_is_found() -> None:
    with pytest.raises(AssertionError, match="comes later"):
        blind_to_what_is_hidden(made({**PLAIN, "position": lambda config: Ahead()}))


def test_a_gradient_that_is_not_finite_is_found() -> None:
    class Root(Position):
        def embed(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
            return x + (pos[:, None] * x.sum() * 0).sqrt()           # 0 forward, infinite backward

    with pytest.raises(AssertionError, match="finite"):
        blind_to_what_is_hidden(made({**PLAIN, "mask": {"name": "full"}, "position": lambda config: Root()}))


# A position of one's own: one file, no other one touched.

TOY = '''
"""Distance by parity: an even distance scores 0.5 more."""
import torch
from fishpaw.contracts import Position


class Parity(Position):
    def bias(self, q_pos, k_pos):
        return ((q_pos[:, None, :, None] - k_pos[:, None, None, :]) % 2 == 0) * 0.5


def build(config):
    return Parity()
'''


@pytest.fixture()
def toy(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "toy_position.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "toy_position:build"


def test_a_position_in_a_file_of_its_own_goes_through_the_grid(toy: str) -> None:
    axes = [AXES[0], [{"position": toy}], *AXES[2:]]
    for cell in cover(axes, lambda cell: True, seed=1):
        check({key: value for axis, number in zip(axes, cell, strict=True) for key, value in axis[number].items()})
