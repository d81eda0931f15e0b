"""Hierarchical positions re-measured: what the extended table is, and what a model that was trained on n positions makes of more.

kexue.fm/archives/7947. A table p of n rows gives position i n + j the row p_j + alpha / (1 - alpha) (p_i - p_0). That is exact; how well a
model reads on is not: the article's masked model fell from 55 % to 38 % untouched and came back when it was trained on. Here small ones
learn to count and read four times as far. Untouched, they do better beyond the table than with new random rows, and worse within its
length, since places of other blocks look like those that were meant; trained on, they come back sooner beyond the table than new rows do.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from fishpaw.config import ModelConfig
from fishpaw.lab.findings import Found, Row, Words, interval, sampled
from fishpaw.model.transformer import Transformer
from fishpaw.positions.hierarchical import Hierarchical, build
from fishpaw.switch import Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "closed_form", "defined", "draw", "extended", "measure"]

TITLE = Words("Hierarchical positions: n learned rows read n² places", "层次分解位置编码：n 个学到的位置读 n² 个位置")
SOURCE = "https://kexue.fm/archives/7947"

ALPHA = 0.4
BASE = 16
"""Positions that the small models are trained on, n; they read TIMES as many."""
TIMES = 4
NUMBERS = 20
SEEDS = 3
STEPS, ROWS = 300, 64
"""Of training at n positions."""
MORE_STEPS, MORE_ROWS = 100, 16
"""Of training on at TIMES n."""
TEXTS = 96
"""Unseen, for each accuracy."""
ALPHAS = (0.1, 0.25, 0.4, 0.45, 0.55, 0.7)

Placed = tuple[Tensor, Tensor]
"""Right answers and questions at each place, [t]."""


def measure(*, seed: int = 0) -> Found:
    """The laws, then SEEDS small models: some twenty seconds on one core."""
    rows, series = _trained(seed)
    return Found((*_laws(seed), _unchanged(seed), *rows), series)


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Likeness of places in a trained table as it is extended, accuracy by place, accuracy by alpha."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.35, 1.2, 1))
    base = series["base"]
    picture = left.imshow(series["likeness"], vmin=-1, vmax=1, cmap="RdBu_r")
    for edge in range(base, len(series["likeness"]), base):
        left.axhline(edge - 0.5, color="black", linewidth=0.6)
        left.axvline(edge - 0.5, color="black", linewidth=0.6)
    figure.colorbar(picture, ax=left, fraction=0.046, pad=0.04)
    left.set_xlabel("position")
    left.set_ylabel("position")
    left.set_title(f"cosine of rows, alpha {ALPHA:g}", fontsize=10)
    for color, (name, curve) in zip(("C0", "C1", "C0", "C1"), series["places"].items(), strict=True):
        middle.plot(series["middles"], curve, "-" if "trained" in name else ":", color=color, label=name)
    middle.axvline(base - 0.5, ymax=0.7, color="black", linestyle="--", linewidth=1)       # below the legend
    middle.axhline(series["within"], color="grey", linewidth=0.8, label="read at n")
    middle.set_xlabel("position (dashed: n)")
    middle.set_ylabel("accuracy of masked tokens")
    middle.set_ylim(0, 1.5)
    middle.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    middle.legend(fontsize=7, loc="upper center")
    for name, curve in series["alphas"].items():
        errors = [[mean - low for mean, low in zip(curve["mean"], curve["low"], strict=True)],
                  [high - mean for mean, high in zip(curve["mean"], curve["high"], strict=True)]]  # fmt: skip
        right.errorbar(ALPHAS, curve["mean"], yerr=errors, marker="o", markersize=3, capsize=2, label=name)
    right.axvline(0.5, color="black", linestyle="--", linewidth=1)
    right.set_xlabel("alpha (dashed: refused)")
    right.set_ylabel("accuracy, untouched, 4 n read")
    right.legend(fontsize=7)


# The extended table


def extended(position: Hierarchical, count: int | None = None) -> Tensor:
    """The library's first `count` rows (None: all n²), [count e]."""
    count = position.base**2 if count is None else count
    zeros = torch.zeros(count, position.table.embedding_dim, dtype=position.table.weight.dtype)
    return position.embed(zeros, torch.arange(count)).detach()


def defined(table: Tensor, alpha: float) -> Tensor:
    """table [n e] -> [n² e] as the article defines it: alpha u_i + (1 - alpha) u_j with u_i = (p_i - alpha p_0) / (1 - alpha)."""
    u = (table - alpha * table[:1]) / (1 - alpha)
    return (alpha * u[:, None] + (1 - alpha) * u[None]).flatten(0, 1)


def closed_form(table: Tensor, alpha: float) -> Tensor:
    """table [n e] -> [n² e]: p_j + alpha / (1 - alpha) (p_i - p_0)."""
    return (table[None] + alpha / (1 - alpha) * (table[:, None] - table[:1])).flatten(0, 1)


def _laws(seed: int) -> list[Row]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        position = build(ModelConfig(vocab_size=1, hidden_size=7, layers=1, attention_heads=1, intermediate_size=1, max_positions=23,
                                     init_std=1.0), alpha=ALPHA)  # fmt: skip
    table, rows = position.table.weight.detach(), extended(position)
    n = len(table)
    mirror = torch.arange(n * n).view(n, n).T.flatten()
    other = mirror != torch.arange(n * n)
    even = defined(table, 0.5)
    blocks = rows.view(n, n, -1)
    moved = blocks - blocks[:1]
    neighbours, apart = (float(blocks.diff(dim=axis).norm(dim=-1).mean()) for axis in (1, 0))
    position.embed(torch.zeros(n * n, 7), torch.arange(n * n)).sum().backward()
    learning = sum(parameter.numel() for parameter in position.parameters() if parameter.grad is not None)
    bert = build(ModelConfig(vocab_size=1, hidden_size=1, layers=1, attention_heads=1, intermediate_size=1, max_positions=512)).length
    assert bert is not None

    def largest(difference: Tensor) -> float:
        return float(difference.abs().max())

    return [
        Row(Words("512 learned positions read 262,144", "512 个学到的位置可读 262,144 个"), 262_144, bert),
        Row(Words("the first n rows are the table (fp32)", "前 n 行就是原表（fp32）"), 0.0, largest(rows[:n] - table), within=1e-6),
        Row(Words("the rows are alpha u_i + (1 - alpha) u_j (fp32)", "各行等于 alpha u_i + (1 - alpha) u_j（fp32）"),
            0.0, largest(rows - defined(table, ALPHA)), within=5e-6),
        Row(Words("the rows are p_j + alpha / (1 - alpha) (p_i - p_0) (fp32)", "各行等于 p_j + alpha / (1 - alpha) (p_i - p_0)（fp32）"),
            0.0, largest(rows - closed_form(table, ALPHA)), within=5e-6),
        Row(Words("alpha 0.4: place (i, j) is never its mirror (j, i): smallest distance",
                  "alpha 为 0.4 时位置 (i, j) 与 (j, i) 总不相同：最小距离"),
            1e-2, float((rows - rows[mirror]).norm(dim=1)[other].min()), ">="),
        Row(Words("alpha 0.5: it always is: largest difference", "alpha 为 0.5 时总相同：最大差"),
            0.0, largest(even - even[mirror]), within=5e-6),
        Row(Words("a block is the first one moved: what is added doesn't depend on j", "每块都是第一块的平移：增量与 j 无关"),
            0.0, largest(moved - moved[:, :1]), within=5e-6),
        Row(Words("blocks lie alpha / (1 - alpha) times as far apart as neighbours", "相邻块的距离是相邻位置的 alpha / (1 - alpha) 倍"),
            2 / 3, apart / neighbours, within=1e-5),
        Row(Words("what learns are n x d numbers", "可学习的参数只有 n x d 个"), n * 7, learning),
    ]  # fmt: skip


def _unchanged(seed: int) -> Row:
    """Logits of texts that the table is long enough for, before and after the switch is turned."""
    shape: dict[str, Any] = {"vocab_size": 37, "hidden_size": 24, "layers": 2, "attention_heads": 2, "intermediate_size": 29,
                             "max_positions": 512, "init_std": 0.2, "heads": ("mlm",), "segments": 0}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = Transformer(ModelConfig(**shape)).eval()
    turned = Transformer(ModelConfig(**shape, position={"name": "hierarchical", "alpha": ALPHA})).eval()
    turned.load_state_dict(plain.state_dict())
    ids = torch.randint(37, (2, 512), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        difference = float((turned(ids).logits - plain(ids).logits).abs().max())
    words = Words("a model's logits of 512 tokens stay when the switch is turned", "打开该开关，512 个 token 的输出不变")
    return Row(words, 1e-5, difference, "<=")


# Small models that count


def _counting(rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """ids [rows length] that count up modulo NUMBERS and begin anew at one place in ten, and which of them are masked, 15 %."""
    anew = torch.rand(rows, length, generator=generator) < 0.1
    anew[:, 0] = True
    start, place = torch.randint(NUMBERS, (rows, length), generator=generator), torch.arange(length)
    last = torch.where(anew, place, -1).cummax(1).values
    return (start.gather(1, last) + place - last) % NUMBERS, torch.rand(rows, length, generator=generator) < 0.15


def _model(position: Spec, rows: int) -> Transformer:
    return Transformer(ModelConfig(NUMBERS + 1, 32, 2, 2, 128, position=position, max_positions=rows, segments=0, heads=("mlm",),
                                   dropout=0.0, attention_dropout=0.0, init_std=0.1))  # fmt: skip


def _learn(model: Transformer, length: int, rows: int, steps: int, rate: float, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        ids, hidden = _counting(rows, length, generator)
        asked = hidden.flatten().nonzero()[:, 0]
        loss = cross_entropy(model(ids.masked_fill(hidden, NUMBERS), logits_at=asked).logits, ids.flatten()[asked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def _answers(model: Transformer, length: int, seed: int) -> Placed:
    ids, hidden = _counting(TEXTS, length, torch.Generator().manual_seed(seed + 99))
    right = model(ids.masked_fill(hidden, NUMBERS)).logits.argmax(-1) == ids
    return (right & hidden).sum(0), hidden.sum(0)


def _share(placed: Placed, start: int = 0, end: int | None = None) -> float:
    right, asked = (one[start:end].sum() for one in placed)
    return float(right / asked)


def _longer(state: Mapping[str, Tensor], *, alpha: float | None, seed: int) -> Transformer:
    """The trained weights with places for TIMES n tokens: hierarchical, or (alpha None) a longer table with new random rows."""
    if alpha is not None:
        model = _model({"name": "hierarchical", "alpha": alpha}, BASE)
        model.load_state_dict(state)
        return model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model("learned", TIMES * BASE)
    fresh = model.state_dict()
    name = next(name for name, value in fresh.items() if value.shape != state[name].shape)
    model.load_state_dict({**state, name: torch.cat((state[name], fresh[name][BASE:]))})
    return model.eval()


def _trained(seed: int) -> tuple[list[Row], dict[str, Any]]:
    names = {(ALPHA, False): "hierarchical", (None, False): "new random rows", (ALPHA, True): "hierarchical, trained on",
             (None, True): "new random rows, trained on"}  # fmt: skip
    found: dict[str, list[Placed]] = {name: [] for name in names.values()}
    within: list[float] = []
    by_alpha: dict[float, list[Placed]] = {alpha: [] for alpha in ALPHAS}
    likeness: list[list[float]] = []
    for one in range(SEEDS * seed, SEEDS * seed + SEEDS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(one)
            model = _model("learned", BASE)
        _learn(model, BASE, ROWS, STEPS, 5e-3, torch.Generator().manual_seed(one))
        within.append(_share(_answers(model, BASE, one)))
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for (alpha, more), name in names.items():
            reader = _longer(state, alpha=alpha, seed=one)
            if more:
                _learn(reader, TIMES * BASE, MORE_ROWS, MORE_STEPS, 3e-3, torch.Generator().manual_seed(one + 7))
            found[name].append(_answers(reader, TIMES * BASE, one))
        for alpha, answers in by_alpha.items():
            answers.append(_answers(_longer(state, alpha=alpha, seed=one), TIMES * BASE, one))
        likeness = likeness or _likeness(state)
    series = {"base": BASE, "likeness": likeness, "within": statistics.fmean(within), **_by_place(found), "alphas": _by_alpha(by_alpha)}
    return _rows(found, within), series


def _rows(found: Mapping[str, list[Placed]], within: list[float]) -> list[Row]:
    def whole(name: str) -> list[float]:
        return [_share(one) for one in found[name]]

    def less(one: list[float], other: list[float]) -> list[float]:
        return [a - b for a, b in zip(one, other, strict=True)]

    def beyond(name: str) -> list[float]:
        return [_share(one, BASE) for one in found[name]]

    fresh, on, fresh_on = "new random rows", "hierarchical, trained on", "new random rows, trained on"
    return [
        sampled(Words("untouched, four times as long: accuracy falls (0.55 to 0.38 in the article): how far",
                      "不再训练直接读四倍长度：准确率下降（文章中 0.55 到 0.38）：降幅"),
                0.0, less(within, whole("hierarchical")), relation=">="),
        sampled(Words("untouched, beyond the table: accuracy above that of new random rows",
                      "不再训练，超出原表的部分：准确率高于随机新行的幅度"),
                0.0, less(beyond("hierarchical"), beyond(fresh)), relation=">="),
        sampled(Words("trained on for a while: accuracy above untouched (0.38 to 0.55 in the article)",
                      "继续训练片刻：准确率比不训练高（文章中 0.38 到 0.55）"),
                0.0, less(whole(on), whole("hierarchical")), relation=">="),
        sampled(Words("trained on for as long: accuracy above that of new random rows, beyond the table",
                      "同样继续训练，超出原表的部分：准确率高于随机新行的幅度"),
                0.0, less(beyond(on), beyond(fresh_on)), relation=">="),
        sampled(Words("trained on for as long: accuracy above that of new random rows, all places",
                      "同样继续训练，所有位置：准确率高于随机新行的幅度"),
                0.0, less(whole(on), whole(fresh_on)), relation=">="),
    ]  # fmt: skip


def _by_place(found: Mapping[str, list[Placed]]) -> dict[str, Any]:
    """Accuracy of every four places, over all seeds."""
    step = BASE // 4
    starts = range(0, TIMES * BASE, step)
    total = {name: (sum(one for one, _ in answers), sum(one for _, one in answers)) for name, answers in found.items()}
    curves = {name: [_share(placed, start, start + step) for start in starts] for name, placed in total.items()}  # type: ignore[arg-type]  # a list of tensors
    return {"middles": [start + (step - 1) / 2 for start in starts], "places": curves}


def _by_alpha(found: Mapping[float, list[Placed]]) -> dict[str, Any]:
    parts = {"first n": (0, BASE), "beyond": (BASE, None)}
    curves = {}
    for name, (start, end) in parts.items():
        shares = [[_share(one, start, end) for one in answers] for answers in found.values()]
        low, high = zip(*map(interval, shares), strict=True)
        curves[name] = {"mean": [statistics.fmean(one) for one in shares], "low": list(low), "high": list(high)}
    return curves


def _likeness(state: Mapping[str, Tensor]) -> list[list[float]]:
    """Cosines of the first 3 n extended rows of a trained table, less their mean."""
    position = _longer(state, alpha=ALPHA, seed=0).position
    assert isinstance(position, Hierarchical)
    rows = extended(position, 3 * BASE)
    rows = rows - rows.mean(0)
    found: list[list[float]] = cosine_similarity(rows[:, None], rows[None], dim=-1).tolist()
    return found
