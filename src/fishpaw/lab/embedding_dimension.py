"""How many dimensions a vocabulary needs by minimum entropy, n > 8.33 ln N (kexue.fm/archives/7695): its table, its limit, its limits.

Skip-gram gives a pair of words p_ij = exp(u_i . v_j) / Z. With vectors spread evenly over a sphere of radius sqrt n their entropy is about
2 ln N + h_n, h_n = ln E[e^(n c)] - E[n c e^(n c)] / E[e^(n c)], c the cosine of two of them, whose angle has density sin^(n-2). The rule is
entropy 0. E[e^(n c)] = Gamma(n/2) (2/n)^(n/2-1) I_(n/2-1)(n), I the modified Bessel function, and the second term of h_n is n times a
ratio of two I. What the article leaves open: h_n / n tends to -(1/2) ln((1 + sqrt 5) / 2) = -0.240606 (printed without its sign), so the
rule's factor is 4 / ln phi = 8.3123 in the limit and less before it; 8.33 = 2 / 0.24 is a rounding. At the n of the rule 2,000 random
vectors are far from the formula, whose mean over the sphere they are too few to sample.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.errors import DataError
from fishpaw.files import digest_of
from fishpaw.lab import skip_gram
from fishpaw.lab.findings import Found, Row, Words, interval, sampled
from fishpaw.lab.parts import part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "SOURCE", "TITLE", "Size", "dimension", "draw", "entropy_of_samples", "excess", "excess_by_angles", "full", "log_bessel", "measure",
    "root",
]  # fmt: skip

TITLE = Words("How many dimensions a vocabulary needs: n > 8.33 ln N", "词表需要多少维词向量：n > 8.33 ln N")
SOURCE = "https://kexue.fm/archives/7695"

_TABLE = {32: -7.77471, 64: -15.4734, 96: -23.1726, 128: -30.8718, 256: -61.6692, 512: -123.264}
_ROOTS = {10_000: 76.25, 100_000: 95.39, 5_000_000: 127.91}
_SAMPLED = (8, 16, 24)
_WORDS, _DRAWS, _FEW = 2000, 16, 6


@dataclass(frozen=True)
class Size:
    """What the full form costs: letters read, least times that a character must come, sizes of vectors, seeds, steps of pairs, held-out
    pairs."""

    letters: int = 20_000_000
    least: int = 20
    dimensions: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    seeds: int = 3
    steps: int = 2000
    batch: int = 4096
    window: int = 2
    rate: float = 0.02
    held: int = 20_000


def log_bessel(order: float, x: float) -> float:
    """ln I_order(x) for order > -1, x > 0, by its series, whose terms (x/2)^(2k + order) / (k! Gamma(k + order + 1)) are all positive."""
    k = torch.arange(int(x) + 64, dtype=torch.float64)                                 # the greatest stands below k = x / 2
    terms = (2 * k + order) * math.log(x / 2) - torch.lgamma(k + 1) - torch.lgamma(k + order + 1)
    return float(terms.logsumexp(0))


def excess(n: float) -> float:
    """h_n, nats, by the closed form; any n > 0, in logarithms throughout."""
    order = n / 2 - 1
    bessel = log_bessel(order, n)
    return math.lgamma(n / 2) + order * math.log(2 / n) + bessel - n * math.exp(log_bessel(order + 1, n) - bessel)


def excess_by_angles(n: float, *, steps: int = 20_000) -> float:
    """The same for n > 2 by summing over midpoints of the angle, in logarithms: without them e^n has no float from n = 710 on."""
    angle = (torch.arange(steps, dtype=torch.float64) + 0.5) * (math.pi / steps)
    density = (n - 2) * angle.sin().log()
    density = density - density.logsumexp(0)
    tilted = density + n * angle.cos()
    norm = tilted.logsumexp(0)
    return float(norm - ((tilted - norm).exp() * n * angle.cos()).sum())


def root(vocabulary: float) -> float:
    """The n at which 2 ln N + h_n = 0, by halving; N >= 2."""
    low, high = 1.0, 16.0 + 16.0 * math.log(vocabulary)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if 2 * math.log(vocabulary) + excess(middle) > 0 else (low, middle)
    return high


def dimension(vocabulary: int) -> int:
    """The least whole n whose entropy 2 ln N + h_n is not above 0: for N = 10,000 it is 77. ConfigError for a vocabulary below 2."""
    checks.whole("vocabulary", vocabulary, least=2)
    return math.ceil(root(vocabulary))


def entropy_of_samples(n: int, generator: torch.Generator) -> float:
    """The entropy, nats, of p_ij for 2,000 and 2,000 random vectors of size n on the sphere of radius sqrt n."""
    u, v = (torch.randn(_WORDS, n, generator=generator, dtype=torch.float64) for _ in range(2))
    scores = n * (u / u.norm(dim=1, keepdim=True)) @ (v / v.norm(dim=1, keepdim=True)).T  # [2000 2000]
    norm = scores.flatten().logsumexp(0)
    return float(norm - ((scores - norm).exp() * scores).sum())


def measure(*, seed: int = 0) -> Found:
    """The table, the limit, the rule's numbers, and entropies of random vectors: 16 draws of a size that has a claim, 6 of others."""
    times = {4: _FEW, **dict.fromkeys(_SAMPLED, _DRAWS), 32: _FEW, 48: _FEW, 64: _FEW, 96: _FEW}
    draws = {n: [entropy_of_samples(n, torch.Generator().manual_seed(1000 * seed + one)) for one in range(count)]
             for n, count in times.items()}  # fmt: skip
    return Found((*_table_rows(), *_limit_rows(), *_root_rows(), *_form_rows(), *_draw_rows(draws)), _curves(draws))


def full(keep: Path, *, seed: int = 0, data: Path | None = None, tell: Callable[[str], None], size: Size = Size()) -> Found:
    """The quick form, and skip-gram on the characters of laws (data/corpus/laws_lawrefbook): the held-out loss by the vectors' size.

    A plateau is read as 95 % of what the best size gains on the smallest; between two sizes losses are read off on the logarithm of n.
    """
    if data is None:
        raise DataError("embedding_dimension's full form reads corpus/laws_lawrefbook/docs.jsonl.gz, and no folder is named.",
                        fix="Give data, the folder that holds it: --data DIR, or FISHPAW_DATA.")  # fmt: skip
    path = data / "corpus" / "laws_lawrefbook" / "docs.jsonl.gz"
    if not path.is_file():
        raise DataError(f"{path}: no such file.", fix="Name the folder that holds corpus/laws_lawrefbook.")
    settings = {key: value for key, value in asdict(size).items() if key not in ("seeds", "dimensions")} | {"data": digest_of(path)}

    @functools.cache
    def text() -> skip_gram.Characters:
        tell(f"reading {size.letters} letters of {path.name}")
        return skip_gram.characters(path, most=size.letters, least=size.least)

    @functools.cache
    def held(one: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(10_000 + one)
        return skip_gram.draw_pairs(text().held, size.held, window=size.window, generator=generator)

    def facts() -> dict[str, Any]:
        unigram = [skip_gram.unigram(text().counts, held(seed + one)) for one in range(size.seeds)]
        return {"vocabulary": len(text().counts), "unigram": unigram}

    def trained(n: int, one: int) -> dict[str, Any]:
        u, v = skip_gram.train(text(), n, steps=size.steps, batch=size.batch, window=size.window, rate=size.rate, seed=one)
        return {"loss": skip_gram.held_out(u, v, text().counts, held(one))}

    about, _ = part(keep, f"text seed {seed}", {**settings, "seed": seed, "seeds": size.seeds}, facts)
    losses: list[list[float]] = []
    for one in range(seed, seed + size.seeds):
        losses.append([])
        for n in size.dimensions:
            compute = functools.partial(trained, n, one)
            found, was_kept = part(keep, f"{n} dimensions seed {one}", {**settings, "seed": one, "n": n}, compute)
            losses[-1].append(found["loss"])
            tell(f"n = {n}, seed {one}: held-out loss {found['loss']:.4f} nats{' (kept)' if was_kept else ''}")
    return _with_losses(measure(seed=seed), size.dimensions, losses, about)


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Left: entropy of N = 2000 words by n, the formula and samples. Next: the factor of ln N. Right, of the full form: held-out losses."""
    axes = figure.subplots(1, 3 if "losses" in series else 2)
    axes[0].plot(series["n"], series["formula"], label="2 ln N + h_n")
    axes[0].errorbar(series["sampled_n"], series["sampled"], yerr=series["sampled_half"], fmt="o", markersize=4, label="random vectors")
    axes[0].axhline(0, color="grey", linestyle="--", linewidth=0.8)
    axes[0].set(xlabel="dimensions n", ylabel="entropy, nats", title=f"N = {series['words']} words")
    axes[1].semilogx(series["vocabulary"], series["factor"], label="where entropy is 0")
    for level, style, name in ((8.33, "--", "8.33, the rule"), (series["limit"], ":", "4 / ln φ, the limit")):
        axes[1].axhline(level, color="grey", linestyle=style, linewidth=0.8, label=name)
    axes[1].set(xlabel="vocabulary N", ylabel="n / ln N", title="the rule's factor")
    if "losses" in series:
        means = [statistics.fmean(values) for values in zip(*series["losses"], strict=True)]
        axes[2].semilogx(series["dimensions"], means, "o-", base=2, label="mean")
        for values in series["losses"]:
            axes[2].semilogx(series["dimensions"], values, ".", base=2, color="grey", markersize=3)
        axes[2].axvline(series["rule"], color="grey", linestyle="--", linewidth=0.8, label="the rule")
        axes[2].set(xlabel="dimensions n", ylabel="held-out loss, nats a pair", title="skip-gram on characters")
        axes[2].set_xticks(series["dimensions"], [str(n) for n in series["dimensions"]])
    for one in axes:
        one.legend(frameon=False, fontsize=8)


def _table_rows() -> list[Row]:
    rows = [Row(Words(f"h_{n}", f"h_{n}"), claimed, excess(n), within=5e-6 if n == 32 else 5e-4 if n == 512 else 5e-5)
            for n, claimed in _TABLE.items()]  # fmt: skip
    signed = Words("h_512 / 512, printed as 0.24 without its sign", "h_512 / 512（文章写 0.24，漏了负号）")
    return [*rows, Row(signed, -0.24, excess(512) / 512, within=1e-3)]


def _limit_rows() -> list[Row]:
    slope = _slope()
    return [
        Row(Words("the limit of h_n / n, -(1/2) ln phi", "h_n / n 的极限 -(1/2) ln φ"), -0.240606, slope, within=5e-7),
        Row(Words("the exact factor of ln N, 4 / ln phi", "ln N 的精确系数 4 / ln φ"), 8.3123, -2 / slope, within=5e-5),
        Row(Words("what 8.33 = 2 / 0.24 is above it", "8.33 = 2 / 0.24 比它大多少"), 0.017, 8.33 + 2 / slope, ">="),
    ]  # fmt: skip


def _root_rows() -> list[Row]:
    rows = [Row(Words(f"N = {n}: the n of entropy 0", f"N = {n}：熵为 0 的 n"), claimed, root(n), within=5e-3)
            for n, claimed in _ROOTS.items()]  # fmt: skip
    for n, claimed, whole in ((100_000, 95.90, 96), (5_000_000, 128.49, 128)):
        rows.append(Row(Words(f"N = {n}: 8.33 ln N", f"N = {n}：8.33 ln N"), claimed, 8.33 * math.log(n), within=6e-3))
        rows.append(Row(Words(f"N = {n}: dimensions to take", f"N = {n}：应取的维数"), whole, dimension(n)))
    return rows


def _form_rows() -> list[Row]:
    places = (5, 8, 32, 127, 512, 701, 2048)
    apart = max(abs(excess(n) - excess_by_angles(n)) for n in places)
    return [
        Row(Words("the closed form against a sum over angles, n up to 2048", "闭式与对角度求和之差，n 至 2048"), 0.0, apart, within=1e-9),
        Row(Words("without logarithms e^n overflows from about this n on", "不取对数时 e^n 从大约此 n 起溢出"), 700.0, _overflow(),
            within=15),
    ]  # fmt: skip


def _draw_rows(draws: Mapping[int, Sequence[float]]) -> list[Row]:
    rows = [sampled(Words(f"entropy of {_WORDS} random vectors, n = {n}: as the formula", f"{_WORDS} 个随机向量的熵，n = {n}：与公式相同"),
                    2 * math.log(_WORDS) + excess(n), draws[n], within=0.1) for n in _SAMPLED]  # fmt: skip
    beyond = [value - 2 * math.log(_WORDS) - excess(64) for value in draws[64]]
    claim = Words("n = 64, where the formula is below 0: samples are above it by", "n = 64，公式已为负：样本的熵高出公式")
    return [*rows, sampled(claim, 0.0, beyond, relation=">=")]


def _with_losses(quick: Found, dimensions: Sequence[int], losses: Sequence[Sequence[float]], about: Mapping[str, Any]) -> Found:
    rule = dimension(about["vocabulary"])
    shares, gains = [], []
    for values, unigram in zip(losses, about["unigram"], strict=True):
        best = min(values)
        shares.append((values[0] - _between(dimensions, values, rule)) / (values[0] - best) if values[0] > best else 0.0)
        gains.append(unigram - best)
    first, v = dimensions[0], about["vocabulary"]
    share = Words(f"skip-gram, {v} characters: share of the gain over n = {first} that the rule's n = {rule} has, at least 0.95",
                  f"skip-gram，{v} 个字：规则的 n = {rule} 已得 n = {first} 以上增益的多少，至少 0.95")  # fmt: skip
    gain = Words("nats that the best size is below character frequencies", "最好的维数比字频模型低多少 nat")
    rows = (sampled(share, 0.95, shares, relation=">="), sampled(gain, 0.0, gains, relation=">="))
    more = {"dimensions": list(dimensions), "losses": [list(values) for values in losses], "rule": rule, "unigram": about["unigram"]}
    return Found((*quick.rows, *rows), {**quick.series, **more})


def _between(dimensions: Sequence[int], values: Sequence[float], n: float) -> float:
    """The loss at n, on straight lines over the logarithm of n; outside, that of the nearest."""
    pairs = list(zip(dimensions, values, strict=True))
    for (low, before), (high, after) in zip(pairs, pairs[1:], strict=False):
        if low <= n <= high:
            return before + (after - before) * math.log(n / low) / math.log(high / low)
    return values[0] if n < dimensions[0] else values[-1]


def _slope() -> float:
    """Of h between n = 10^5 and twice that: what h_n / n tends to, without the constant that h_n has beside it."""
    return (excess(200_000) - excess(100_000)) / 100_000


def _overflow() -> int:
    sizes = torch.arange(600, 800, dtype=torch.float64)
    return int(sizes[sizes.exp().isinf()][0])


def _curves(draws: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    vocabularies = [10 ** (2 + 6 * step / 40) for step in range(41)]
    means = [statistics.fmean(values) for values in draws.values()]
    return {
        "n": list(range(4, 101, 4)), "formula": [2 * math.log(_WORDS) + excess(n) for n in range(4, 101, 4)], "words": _WORDS,
        "sampled_n": list(draws), "sampled": means,
        "sampled_half": [interval(values)[1] - mean for values, mean in zip(draws.values(), means, strict=True)],
        "vocabulary": vocabularies, "factor": [root(n) / math.log(n) for n in vocabularies], "limit": -2 / _slope(),
    }  # fmt: skip
