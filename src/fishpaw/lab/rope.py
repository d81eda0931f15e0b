"""Rotary positions re-measured: the identity, rounding, decay, layouts, the bases of NTK and ReRoPE's window; and how far a model reads on.

kexue.fm/archives/8265 on arXiv:2104.09864, 9675 and 9708 on longer texts. Angles that are rounded to fp32 drift with the absolute position;
the library's tables, made in fp64 and cast last, don't. The decay index is the article's upper bound, and no score is promised to fall with
it: it rises at many distances. `full` trains one model and reads on with each position (extrapolation.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import elu

from fishpaw.attention import linear
from fishpaw.config import ModelConfig
from fishpaw.contracts import Grid, Rows, View
from fishpaw.lab.extrapolation import VARIANTS, Reading, Size, prepare, read, train
from fishpaw.lab.findings import Found, Relation, Row, Words, interval, sampled
from fishpaw.model.transformer import Transformer
from fishpaw.positions import rotary_interpolated, rotary_ntk, rotary_yarn
from fishpaw.positions.rerope import ReRoPE
from fishpaw.positions.rotary import Rotary, angles, turn_halves, turn_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "Size", "decay", "draw", "full", "measure", "turned"]

TITLE = Words("Rotary positions: identity, rounding, decay, and texts longer than were trained on",
              "旋转位置编码：恒等式、舍入、衰减，以及比训练更长的文本")  # fmt: skip
SOURCE = "https://kexue.fm/archives/8265"

SIZE = 64
"""Units of a head."""
USUAL = Size()
"""What `full` costs by default: some 15 minutes on two cores."""
DECAY = {0: 32.5, 1: 31.538, 10: 17.954, 50: 12.629, 100: 10.227, 256: 6.543}
"""Distance -> decay index at d = 128."""
DRIFT = {1_000: 5e-5, 10_000: 1.7e-4, 100_000: 1.1e-3}
"""Position -> how far a score of fp32 angles was seen to move, d = 64."""


def measure(*, seed: int = 0) -> Found:
    """All laws, some seconds on one core."""
    drift, drifts = _drift(seed)
    rows = (*_rotation(seed), *drift, *_model(seed), *_decay(seed), *_layouts(seed), *_bases(), *_windows(seed), _linear(seed))
    distances = list(range(257))
    ones = torch.ones(257, 128, dtype=torch.float64)
    alike = (turned(ones, distances) * ones).sum(-1) / 128
    return Found(rows, {"decay": {"index": decay(distances).tolist(), "alike": alike.tolist()}, "drift": drifts, "frequencies": _slowed()})


def full(keep: Path, *, seed: int = 0, data: Path | None = None, tell: Callable[[str], None], size: Size = USUAL) -> Found:
    """A small model trained at size.length and read at size.lengths with ten positions, the weights the same: intervals over texts. `keep`
    holds the training, which goes on, and a file for each position and length. DataError for missing data, or another size in `keep`."""
    text = prepare(data, seed, size)
    tell(f"text: {len(text.pieces)} pieces of {size.length}, {len(text.unseen)} unseen texts, {text.tokens} tokens")
    model = train(keep, text, seed, size, tell)
    found: dict[str, dict[int, Reading]] = {}
    for variant in VARIANTS:
        found[variant] = {}
        for length in size.lengths:
            found[variant][length] = reading = read(keep, model, text, variant, length, seed, size)
            tell(f"{variant} at {length}: loss {_mean(reading['loss']):.3f}, accuracy {_mean(reading['accuracy']):.3f}")
    usual = found["RoPE"][size.lengths[0]]
    curves = [{"name": variant, "lengths": list(size.lengths), **_curve(found[variant], usual)} for variant in VARIANTS]
    return Found(tuple(_read_on(found, size)), {"extrapolation": curves, "trained": size.length})


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """The decay index, the drift and the scaled frequencies; of `full` the loss by length."""
    if "extrapolation" in series:
        _draw_extrapolation(figure, series)
    else:
        left, middle, right = figure.subplots(1, 3)
        _draw_decay(left, series["decay"])
        _draw_drift(middle, series["drift"])
        _draw_frequencies(right, series["frequencies"])


# The rotation


def turned(x: Tensor, pos: list[int], *, layout: str = "pairs") -> Tensor:
    """x [t d] at the positions pos, by the library's tables of x's type -> [t d]."""
    rotary, at = Rotary(x.shape[-1], layout=layout), torch.tensor([pos])
    tables = rotary.at(at, at, at, x.dtype)
    return rotary.rotate(x[None, None], None, tables)[0][0, 0]


def decay(distances: list[int], size: int = 128) -> Tensor:
    """[n]: the mean over i of |S_i|, S_i the sum of e^(1j m theta) over the first i pairs: the article's bound on a score at distance m."""
    cos, sin = angles(torch.tensor([distances]), Rotary(size).frequencies())
    return torch.complex(cos, sin)[0, 0].cumsum(-1).abs().mean(-1)


def _rotation(seed: int) -> list[Row]:
    q, k = _normal(2, 11, SIZE, seed=seed)
    m, n = [0, 3, 10, 97, 512, 1009, 4096, 10_007, 65_536, 99_991, 100_003], [0, 1, 20, 5, 500, 3, 4000, 10_000, 1, 100_003, 11]
    apart = [one - other for one, other in zip(m, n, strict=True)]
    identity = ((turned(q, m) * turned(k, n)).sum(-1) - (turned(q, apart) * k).sum(-1)).abs().max()
    matrix = torch.stack([_matrix(place) @ x for place, x in zip(m, q, strict=True)])
    plane = torch.view_as_complex(q.view(11, -1, 2))
    angle = torch.tensor(m)[:, None] * 10_000.0 ** (-torch.arange(0, SIZE, 2).double() / SIZE)
    product = torch.view_as_real(plane * torch.polar(torch.ones_like(angle), angle)).flatten(1)
    found = turned(q, m)
    return [
        Row(Words("<R_m q, R_n k> = <R_(m-n) q, k> in fp64, positions to 100,003",
                  "fp64 下 <R_m q, R_n k> = <R_(m-n) q, k>，位置到 100,003"), 1e-9, float(identity), "<="),
        Row(Words("norms are kept: |R_m q| = |q|", "范数不变：|R_m q| = |q|"),
            1e-6, float((found.norm(dim=-1) - q.norm(dim=-1)).abs().max()), "<="),
        Row(Words("R_0 is the identity to the bit", "R_0 逐比特等于恒等变换"), 0.0, float((turned(q, [0] * 11) - q).abs().max())),
        Row(Words("it is the d x d matrix of 2 x 2 rotations", "等于由 2 x 2 旋转组成的 d x d 矩阵"),
            1e-6, float((found - matrix).abs().max()), "<="),
        Row(Words("it is complex multiplication by e^(i m theta)", "等于复数乘法：乘以 e^(i m theta)"),
            1e-6, float((found - product).abs().max()), "<="),
    ]  # fmt: skip


def _matrix(m: int) -> Tensor:
    found = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for i in range(0, SIZE, 2):
        angle = m * 10_000.0 ** (-i / SIZE)
        found[i, i], found[i, i + 1] = math.cos(angle), -math.sin(angle)
        found[i + 1, i], found[i + 1, i + 1] = math.sin(angle), math.cos(angle)
    return found


def _drift(seed: int) -> tuple[list[Row], dict[str, Any]]:
    """|score at (p + 3, p) - score at (3, 0)| of fp32 vectors: with fp32 angles, and with the library's tables."""
    places = [100, *DRIFT]
    samples: dict[int, list[float]] = {place: [] for place in places}
    ours: dict[int, list[float]] = {place: [] for place in places}
    for place in places:
        for draw in range(8):
            q, k = _normal(2, 64, SIZE, seed=1000 * seed + draw).float()
            rounded = _rounded(q, place + 3) * _rounded(k, place) - _rounded(q, 3) * k
            samples[place].append(float(rounded.sum(-1).abs().mean()))
            near, far = (turned(q, [at + 3] * 64) * turned(k, [at] * 64) for at in (0, place))
            ours[place].append(float((far.sum(-1) - near.sum(-1)).abs().max()))
    rows = [sampled(Words(f"angles rounded to fp32: at position {place:,} a score has moved by {seen:g} and more",
                          f"角度用 fp32：在位置 {place:,} 处分数漂移达 {seen:g} 以上"), seen, samples[place], relation=">=")
            for place, seen in DRIFT.items()]  # fmt: skip
    rows.append(Row(Words("the library's tables: at position 100,000 no score moves by more than its products' rounding",
                          "本库的角度表：在位置 100,000 处，分数的变化不超过乘积的舍入"), 1e-5, max(ours[100_000]), "<="))  # fmt: skip
    series = {"fp32": [_mean(samples[place]) for place in places], "ours": [max(ours[place]) for place in places]}
    return rows, {"positions": places, **series}


def _rounded(x: Tensor, place: int) -> Tensor:
    angle = torch.tensor(place, dtype=torch.float32) * 10_000.0 ** (-torch.arange(0, SIZE, 2, dtype=torch.float32) / SIZE)
    return turn_pairs(x, angle.cos(), angle.sin())


# In a model


def _tiny(seed: int) -> Transformer:
    shape: dict[str, Any] = {"vocab_size": 37, "hidden_size": 24, "layers": 2, "attention_heads": 3, "intermediate_size": 29,
                             "init_std": 0.2, "heads": ("lm",), "mask": "causal", "position": "rotary", "dropout": 0.0,
                             "attention_dropout": 0.0}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(ModelConfig(**shape)).eval().requires_grad_(False)


def _model(seed: int) -> list[Row]:
    model, ids = _tiny(seed), torch.randint(37, (2, 13), generator=torch.Generator().manual_seed(seed))
    places = torch.arange(13).expand(2, 13)
    whole, cache = model(ids).logits, model.new_cache()
    steps = [model(ids[:, :5], cache=cache).logits, *(model(ids[:, place], cache=cache).logits for place in range(5, 13))]
    stepwise = torch.cat([one.view(2, -1, 37) for one in steps], dim=1)
    return [
        Row(Words("a shift of all positions by 1,009 leaves a model's logits (fp32)", "所有位置平移 1,009，模型的输出不变（fp32）"),
            1e-4, float((model(ids, positions=places + 1009).logits - whole).abs().max()), "<="),
        Row(Words("positions twice as far apart change them", "位置间距加倍则输出改变"),
            1e-3, float((model(ids, positions=places * 2).logits - whole).abs().max()), ">="),
        Row(Words("decoding from a cache is the full pass (fp32)", "带缓存的解码等于整段计算（fp32）"),
            1e-5, float((stepwise - whole).abs().max()), "<="),
    ]  # fmt: skip


# Decay


def _decay(seed: int) -> list[Row]:
    rows = []
    for m, claimed in DECAY.items():
        words = Words(f"decay index at distance {m}, d = 128", f"距离 {m} 处的衰减指标，d = 128")
        rows.append(Row(words, claimed, float(decay([m])[0]), within=1e-9 if m == 0 else 1e-3))
    q, k = _normal(2, 1, 128, seed=seed)
    products = torch.view_as_complex(q.view(-1, 2)) * torch.view_as_complex(k.view(-1, 2)).conj()
    step = torch.cat((products[1:], torch.zeros(1, dtype=products.dtype))) - products              # Abel: sum h_i e_i = -sum step_i S_i
    distances = list(range(257))
    index = decay(distances)
    scores = turned(q.expand(257, -1), distances) @ k[0]
    bound = index * 64 * float(step.abs().max())
    rows.append(Row(Words("every score is within the bound that the index gives: largest |score| / bound to distance 256",
                          "每个分数都在指标给出的上界之内：到距离 256 为止最大的 |分数| / 上界"),
                    1.0, float((scores.abs() / bound).max()), "<="))  # fmt: skip
    rows.append(Row(Words("the index is no falling curve: of 256 steps, those at which it rises",
                          "指标并非单调下降：256 步中上升的步数"), 1.0, float((index.diff() > 0).sum()), ">="))  # fmt: skip
    return rows


# Layouts and bases


def _layouts(seed: int) -> list[Row]:
    x, pos = _normal(1, 7, SIZE, seed=seed)[0], torch.tensor([[0, 1, 2, 10, 100, 1009, 9973]])
    tables = [one[0, 0] for one in angles(pos, Rotary(SIZE).frequencies())]
    order = torch.arange(SIZE).view(-1, 2).T.flatten()               # even units first
    return [
        Row(Words("half-split is adjacent after one fixed permutation of the units", "对半布局经一个固定置换等于相邻布局"),
            0.0, float((turn_halves(x[:, order], *tables) - turn_pairs(x, *tables)[:, order]).abs().max()), within=1e-12),
        Row(Words("without the permutation vectors are others: the fault of ports", "不做置换则向量不同：移植时的常见错误"),
            0.1, float((turn_halves(x, *tables) - turn_pairs(x, *tables)).abs().max()), ">="),
    ]  # fmt: skip


def _bases() -> list[Row]:
    wide, slow = (Rotary(SIZE, theta).frequencies() for theta in (10_000.0, rotary_ntk.base(10_000.0, 8.0, SIZE)))
    return [
        *(Row(Words(f"NTK's base for a factor of 8, d = {size}", f"NTK 的底数，倍数 8，d = {size}"),
              claimed, rotary_ntk.base(10_000.0, 8.0, size), within=0.05) for size, claimed in ((128, 82684.6), (64, 85550.4))),
        Row(Words("a factor of 1 is RoPE's base", "倍数为 1 时就是 RoPE 的底数"),
            10_000.0, rotary_ntk.base(10_000.0, 1.0, 128), within=1e-9),
        Row(Words("NTK slows the slowest pair by the factor, 8", "NTK 把最慢的一对放慢 8 倍"),
            8.0, float(wide[-1] / slow[-1]), within=1e-9),
        Row(Words("and leaves the fastest as it is", "而最快的一对不变"), 1.0, float(wide[0] / slow[0]), within=1e-12),
    ]  # fmt: skip


def _slowed() -> list[dict[str, Any]]:
    """Of each way to read 8 times as far the frequencies, as shares of RoPE's."""
    config = ModelConfig(vocab_size=1, hidden_size=SIZE, layers=1, attention_heads=1, intermediate_size=1, max_positions=512)
    plain = Rotary(SIZE).frequencies()
    parts = {"interpolation": rotary_interpolated.build(config, factor=8.0), "NTK": rotary_ntk.build(config, factor=8.0),
             "YaRN": rotary_yarn.build(config, factor=8.0)}  # fmt: skip
    return [{"name": name, "share": (part.frequencies() / plain).tolist()} for name, part in parts.items()]


# ReRoPE and linear attention


def _windows(seed: int) -> list[Row]:
    q, k = _normal(2, 23, SIZE, seed=seed)
    pos = torch.arange(23)[None]
    scores = {window: _scores(ReRoPE(Rotary(SIZE), window), q, k, pos) for window in (5, 23)}
    distance = torch.arange(23)[:, None] - torch.arange(23)
    plain, clipped = (_by_distance(q, k, apart) for apart in (distance, distance.clamp(-5, 5)))
    rotary = _scores(Rotary(SIZE), q, k, pos)
    return [
        Row(Words("ReRoPE with a window as long as the text is RoPE to the bit", "窗口不短于文本的 ReRoPE 逐比特等于 RoPE"),
            0.0, float((scores[23] - rotary).abs().max())),
        Row(Words("ReRoPE with a window of 5 is RoPE at min(distance, 5), pair by pair",
                  "窗口为 5 的 ReRoPE 逐对等于距离截到 5 为止的 RoPE"), 1e-9, float((scores[5] - clipped).abs().max()), "<="),
        Row(Words("and no longer RoPE", "并且不再等于 RoPE"), 1e-2, float((scores[5] - plain).abs().max()), ">="),
    ]  # fmt: skip


def _scores(position: Rotary | ReRoPE, q: Tensor, k: Tensor, pos: Tensor) -> Tensor:
    at = position.at(pos, pos, pos, q.dtype)
    if isinstance(position, Rotary):
        q_turned, k_turned = position.rotate(q[None, None], k[None, None], at)
        assert k_turned is not None
        return (q_turned @ k_turned.mT)[0, 0]
    return position.score(q[None, None], k[None, None], at)[0, 0]


def _by_distance(q: Tensor, k: Tensor, distance: Tensor) -> Tensor:
    """q, k [t d], distance [t t] -> each score by a turn of its own."""
    frequencies = 10_000.0 ** (-torch.arange(0, SIZE, 2).double() / SIZE)
    angle = distance[..., None] * frequencies                        # [q k d/2]
    turn = torch.polar(torch.ones_like(angle), angle)
    planes = [torch.view_as_complex(x.view(len(x), -1, 2)) for x in (q, k)]
    return (planes[0][:, None] * turn * planes[1].conj()).sum(-1).real


def _linear(seed: int) -> Row:
    """out_i = sum_j [R_i phi(q_i)]·[R_j phi(k_j)] v_j / sum_j phi(q_i)·phi(k_j), in linear time and pair by pair, fp32."""
    q, k, v = _normal(3, 71, SIZE, seed=seed).float()
    order = torch.arange(71)[None]
    rows, grid, position = Rows(order, order, order, torch.ones_like(order, dtype=torch.bool)), Grid(1, 71), Rotary(SIZE)
    tables = position.at(order, order, order, torch.float32)
    view = View(grid=grid, source=grid, q=rows, k=rows, position=position, at=tables, clock="causal")
    config = ModelConfig(vocab_size=1, hidden_size=SIZE, layers=1, attention_heads=1, intermediate_size=1)
    out = linear.build(config)(q[None, None], k[None, None], v[None, None], view).out[0, 0]
    plain, at = [(elu(x.double()) + 1) for x in (q, k)], order[0].tolist()
    numerator = (turned(plain[0], at) @ turned(plain[1], at).mT).tril() @ v.double()
    expected = numerator / (plain[0] @ plain[1].mT).tril().sum(-1, keepdim=True)
    return Row(Words("linear attention turned in its numerator alone: the linear form is the quadratic one",
                     "只旋转分子的线性注意力：线性形式等于二次形式"), 1e-5, float((out - expected).abs().max()), "<=")  # fmt: skip


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# What the trained model reads


def _read_on(found: Mapping[str, Mapping[int, Reading]], size: Size) -> list[Row]:
    short, twice, long = size.lengths[0], size.lengths[1], size.lengths[-1]
    times = long // size.length

    def difference(one: tuple[str, int], other: tuple[str, int]) -> list[float]:
        pair = (found[name][length]["loss"] for name, length in (one, other))
        return [mine - yours for mine, yours in zip(*pair, strict=True)]

    def better(one: str, other: str, en: str, zh: str) -> Row:
        return sampled(Words(f"{times} times as long: {en}: nats a character that it saves", f"{times} 倍长度：{zh}：每字省下的损失"),
                       0.0, difference((other, long), (one, long)), relation=">=")  # fmt: skip

    def lost(variant: str, length: int, relation: Relation, en: str, zh: str) -> Row:
        return sampled(Words(en, zh), 0.0, difference((variant, length), (variant, short)), relation=relation)

    return [
        lost("RoPE", twice, ">=", f"RoPE loses at {twice // size.length} times the trained length: nats a character more than at that",
             f"RoPE 在 {twice // size.length} 倍训练长度上变差：每字损失之差"),
        lost("RoPE", long, ">=", f"RoPE loses at {times} times the trained length: nats a character more than at that",
             f"RoPE 在 {times} 倍训练长度上变差：每字损失之差"),
        better("RoPE", "interpolation", "RoPE is better than interpolation without training", "RoPE 优于不训练的位置内插"),
        better("NTK", "RoPE", "NTK is better than RoPE", "NTK 优于 RoPE"),
        better("YaRN", "NTK", "YaRN is better than NTK", "YaRN 优于 NTK"),
        better("ReRoPE", "NTK", "ReRoPE is better than NTK", "ReRoPE 优于 NTK"),
        better("ReRoPE log-n", "ReRoPE", "log-n scaling helps ReRoPE", "log-n 缩放对 ReRoPE 有益"),
        lost("ReRoPE", long, "<=", f"ReRoPE gains from {times} times the trained length: nats a character more, below 0",
             f"ReRoPE 从 {times} 倍训练长度获益：每字损失之差小于 0"),
        sampled(Words("ReRoPE costs little within the trained length: nats a character more than RoPE",
                      "ReRoPE 在训练长度内代价很小：每字损失比 RoPE 多"),
                0.0029, difference(("ReRoPE", short), ("RoPE", short)), relation="<="),
    ]  # fmt: skip


def _curve(readings: Mapping[int, Reading], usual: Reading) -> dict[str, list[float]]:
    """By length the loss, the accuracy, and text by text what the loss is above the usual one, with its interval: texts differ more among
    themselves than positions do."""
    more = [[one - other for one, other in zip(reading["loss"], usual["loss"], strict=True)] for reading in readings.values()]
    low, high = zip(*(interval(one) for one in more), strict=True)
    return {"loss": [_mean(reading["loss"]) for reading in readings.values()],
            "accuracy": [_mean(reading["accuracy"]) for reading in readings.values()],
            "mean": [_mean(one) for one in more], "low": list(low), "high": list(high)}  # fmt: skip


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# The figure


def _draw_decay(axes: Any, curves: Mapping[str, list[float]]) -> None:
    whole = curves["index"][0]
    axes.plot([value / whole for value in curves["index"]], label=f"decay index ({whole:g} at 0)")
    axes.plot(curves["alike"], linewidth=0.8, label="score of q = k = (1, 1, …)")
    for m, claimed in DECAY.items():
        axes.plot([m], [claimed / whole], "k+", markersize=8, label="claimed" if m == 0 else "_")
    axes.set_xlabel("distance")
    axes.set_ylabel("relative to distance 0, d = 128")
    axes.set_ylim(0, 1.45)
    axes.legend(fontsize=8, loc="upper right")


def _draw_drift(axes: Any, drift: Mapping[str, list[float]]) -> None:
    axes.plot(drift["positions"], drift["fp32"], marker="o", markersize=3, label="angles in fp32 (mean)")
    axes.plot(drift["positions"], drift["ours"], marker="o", markersize=3, label="the library's tables (largest)")
    axes.plot(list(DRIFT), list(DRIFT.values()), "k--", marker="+", linewidth=1, label="claimed")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1e-7, 1)
    axes.set_xlabel("position")
    axes.set_ylabel("change of a score, d = 64")
    axes.legend(fontsize=8, loc="upper left")


def _draw_frequencies(axes: Any, curves: list[dict[str, Any]]) -> None:
    for curve in curves:
        axes.plot(curve["share"], label=curve["name"])
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="RoPE")
    axes.axhline(1 / 8, color="grey", linestyle=":", linewidth=1, label="1/8")
    axes.set_xlabel("pair, fast to slow")
    axes.set_ylabel("frequency / RoPE's, factor 8")
    axes.legend(fontsize=8)


def _draw_extrapolation(figure: Figure, series: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    for curve in series["extrapolation"]:
        axes = right if curve["name"].endswith("log-n") else left
        errors = [[mean - low for mean, low in zip(curve["mean"], curve["low"], strict=True)],
                  [high - mean for mean, high in zip(curve["mean"], curve["high"], strict=True)]]  # fmt: skip
        axes.errorbar(curve["lengths"], curve["mean"], yerr=errors, marker="o", markersize=3, capsize=2, label=curve["name"])
    for axes, title in ((left, "as trained"), (right, "with log-n scaling at reading")):
        axes.set_xscale("log", base=2)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.axvline(series["trained"], color="black", linestyle="--", linewidth=1, label="length of training")
        axes.set_xlabel("characters read")
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8, loc="upper left")
    left.set_ylabel("nats a character above RoPE at the trained length")
