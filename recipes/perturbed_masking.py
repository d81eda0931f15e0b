"""Words and trees from a masked language model alone, measured: word F1 and attachment, beside what costs nothing.

    python recipes/perturbed_masking.py --model M --data DIR [--limit 200] [--layer -1] [--out runs/perturbed_masking] [--smoke]

Words: sentences of 2 to 60 characters of three sets below DIR/segmentation; --limit of each tune thresholds, as many others are measured.
Every way parts units (characters, runs of letters and digits), once without and once with borders beside punctuation given. Trees: --limit
sentences of DIR/parsing/ud_gsdsimp of at most 30 words, with gold words and the gold root; all words count, the root, too.
Source: arXiv:2004.14786 and kexue.fm/archives/7476, which measure neither on Chinese. --out keeps result.json.
"""

import argparse
import json
import math
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import torch

from fishpaw.config import ModelConfig
from fishpaw.data.records import read_lines
from fishpaw.demo import reviews
from fishpaw.interpret.dependency import attached, chu_liu_edmonds, eisner
from fishpaw.interpret.perturbed_masking import METRICS
from fishpaw.interpret.segmentation import below, spans, valleys, word_counts
from fishpaw.metrics import Counts
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.parse import Parse
from fishpaw.tasks.segment import Segment
from fishpaw.tasks.training import seeded
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.load import load

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="a masked language model; of --smoke a tiny one of random weights")
parser.add_argument("--data", type=Path, default=os.environ.get("FISHPAW_DATA", "."), help="default: FISHPAW_DATA")
parser.add_argument("--limit", type=int, default=200, help="sentences of each set to tune on, and as many to measure")
parser.add_argument("--layer", type=int, default=-1, help="whose vectors: 0 the embeddings … -1 the last layer")
parser.add_argument("--metric", choices=METRICS, default="l2")
parser.add_argument("--out", type=Path, default=Path("runs/perturbed_masking"))
parser.add_argument("--smoke", action="store_true", help="a few bundled reviews with made-up words and trees: seconds")
arguments = parser.parse_args()
if not arguments.smoke and not (arguments.model and (arguments.data / "segmentation").is_dir()):
    parser.error("give --model M and --data DIR, a folder that holds segmentation and parsing")
began, table, limit = time.perf_counter(), {"words": {}, "trees": {}}, 6 if arguments.smoke else arguments.limit
if arguments.smoke:
    texts = [one.text for one in reviews(None).train]
    tokenizer = WordPiece(characters(texts))
    with seeded(0):
        model = Transformer(ModelConfig(len(tokenizer.tokens), 16, 1, 2, 32, heads=("mlm",), init_std=0.3))
else:
    model, tokenizer = load(arguments.model)
with seeded(1):
    nets = {"the model": model, "untrained": Transformer(model.config)}
options = {"layer": arguments.layer, "metric": METRICS[arguments.metric]}
for net in nets.values():
    net.to("cuda" if torch.cuda.is_available() else "cpu").prepare()
def words_of(name):
    """Sentences of a set, each a list of words."""
    if arguments.smoke:
        lines = [re.findall(r"\W|\w{1,2}", text) for text in texts]
    else:
        file = "zhuxian/dev.zhuxian.wordpos" if name == "zhuxian" else f"sighan2005_train_part/{name}_train_last10pct.txt.gz"
        lines = [line.text.split() for line in read_lines(arguments.data / "segmentation" / file)]
        lines = [[word.rpartition("_")[0] for word in line] for line in lines] if name == "zhuxian" else lines
    ends = [[0, *(at + 1 for at, word in enumerate(line) if word in "。！？" or at + 1 == len(line))] for line in lines]
    found = [line[start:end] for line, cuts in zip(lines, ends, strict=True) for start, end in zip(cuts, cuts[1:], strict=False)]
    return [one for text, one in {"".join(one): one for one in found}.items() if 2 <= len(text) <= 60]
def f1(cuts, sentences, given):
    """Word F1 of sentences (units, words, borders beside punctuation) that are cut so, and where `given` at punctuation."""
    total = Counts()
    for own, (units, words, beside) in zip(cuts, sentences, strict=True):
        both = [cut or given and border for cut, border in zip(own, beside, strict=True)]
        total += word_counts(["".join(units[start:end]) for start, end in spans(both)], words)
    return total.f1
def tuned(scores, sentences, given):
    """Thresholds between a percentile of the scores and the next: the one of the best F1."""
    every = sorted(score for one in scores for score in one)
    grid = {every[len(every) * part // 100] for part in range(100)} | {-math.inf, math.inf}
    return max(sorted(grid), key=lambda threshold: f1([below(one, threshold) for one in scores], sentences, given))
print(f"{'words':10} {'way':30} {'F1':>7} {'F1, punctuation given':>22}", flush=True)
for name in ("reviews",) if arguments.smoke else ("pku", "msr", "zhuxian"):
    every = words_of(name)
    singles, pairs = Counter(), Counter()                             # of the set as plain text
    for words in every:
        singles.update(text := "".join(words))
        pairs.update(zip(text, text[1:], strict=False))
    scale = math.log(singles.total() ** 2 / pairs.total())
    chosen = random.Random(0).sample(every, min(2 * limit, len(every)))
    parted = {kind: [Segment(net, tokenizer, **options).segment(["".join(words)])[0] for words in chosen] for kind, net in nets.items()}
    whole = [at for at, one in enumerate(parted["the model"]) if "".join(one.units) == one.text]           # no character was passed over
    sentences, scores = [], {kind: [parted[kind][at].correlations for at in whole] for kind in nets} | {"mutual information": []}
    for at in whole:
        units = parted["the model"][at].units
        ends = [(one[-1], other[0]) for one, other in zip(units, units[1:], strict=False)]
        sentences.append((units, chosen[at], [not (one.isalnum() and other.isalnum()) for one, other in ends]))
        scores["mutual information"].append([scale + math.log((pairs[pair] or 0.1) / singles[pair[0]] / singles[pair[1]]) for pair in ends])
    half, draw = len(whole) // 2, random.Random(1)
    gold = sum(len(words) - 1 for _, words, _ in sentences[:half]) / sum(len(beside) for _, _, beside in sentences[:half])
    sizes = [len(beside) for _, _, beside in sentences[half:]]
    ways = {"characters": [[True] * size for size in sizes], "pairs of characters": [[at % 2 == 1 for at in range(size)] for size in sizes],
            "random, at the gold rate": [[draw.random() < gold for _ in range(size)] for size in sizes]}
    rows = {way: [f1(cuts, sentences[half:], given) for given in (False, True)] for way, cuts in ways.items()}
    for kind, values in scores.items():
        rows[f"{kind}, valleys"] = [f1([*map(valleys, values[half:])], sentences[half:], given) for given in (False, True)]
        bests = [(given, tuned(values[:half], sentences[:half], given)) for given in (False, True)]
        rows[f"{kind}, threshold"] = [f1([below(one, best) for one in values[half:]], sentences[half:], given) for given, best in bests]
    table["words"][name] = rows | {"sentences": len(sizes)}
    for way, (plain, given) in rows.items():
        print(f"{name:10} {way:30} {plain:7.4f} {given:22.4f}", flush=True)
def trees():
    """(words, heads from 0 with -1 at the root, whether each is punctuation) of sentences."""
    made_up = [(words := words_of("")[at][:9], [*range(-1, len(words) - 1)], [False] * len(words)) for at in range(9 * arguments.smoke)]
    rows, found = [], made_up
    for line in () if made_up else read_lines(arguments.data / "parsing" / "ud_gsdsimp" / "zh_gsdsimp-ud-dev.conllu.gz"):
        cells = line.text.split("\t")
        if cells[0].isdigit():                                        # no comment, no range, no empty node
            rows.append((cells[1], int(cells[6]) - 1, cells[7].startswith("punct")))
        elif not line.text.strip():
            if 2 <= len(rows) <= 30:
                found.append(tuple(map(list, zip(*rows, strict=True))))
            rows = []
    return random.Random(2).sample(found, min(limit, len(found)))
totals = {}
for at, (words, heads, punctuation) in enumerate(trees()):
    n, root = len(words), heads.index(-1)
    ways = {"the word before (right-branching)": [*range(-1, n - 1)], "the word behind (left-branching)": [*range(1, n), -1],
            "the neighbour towards the root": [one + (one < root) - (one > root) for one in range(n)],
            "random, projective": eisner(torch.rand(n, n, generator=torch.Generator().manual_seed(at)), root=root)}
    for kind, net in nets.items():
        matrix = Parse(net, tokenizer, **options).impact(words).matrix
        for direction, scores in (("head on dependent", matrix.T), ("dependent on head", matrix)):
            ways[f"{kind}, {direction}, Eisner"] = eisner(scores, root=root)
            ways[f"{kind}, {direction}, Chu-Liu-Edmonds"] = chu_liu_edmonds(scores, root=root)
    for way, found in ways.items():
        found[root] = -1
        counts = *attached(found, heads), *attached(found, heads, counted=[not one for one in punctuation])
        totals[way] = [one + other for one, other in zip(totals.get(way, [0] * 6), counts, strict=True)]
print(f"\n{'heads':46} {'UAS':>7} {'UUAS':>7} {'UAS without punctuation':>24}")
for way, (right, either, count, right_words, _, count_words) in totals.items():
    table["trees"][way] = {"uas": right / count, "uuas": either / count, "uas_words": right_words / count_words, "words": count}
    print(f"{way:46} {right / count:7.4f} {either / count:7.4f} {right_words / count_words:24.4f}", flush=True)
arguments.out /= "smoke" if arguments.smoke else "."                 # a trial never stands in for a run
arguments.out.mkdir(parents=True, exist_ok=True)
(arguments.out / "result.json").write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
print(f"{time.perf_counter() - began:.0f} s, layer {arguments.layer}, metric {arguments.metric}")
