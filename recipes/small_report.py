"""What fishpaw-small can do, beside itself untrained and what costs nothing: character bigrams, TF-IDF, a model from nothing.

    python recipes/small_report.py --data DIR [--model runs/fishpaw_small/run/model] [--corpus runs/open_corpus] [--out runs/small_report]
                                   [--only fill write similar probe tune adapt] [--smoke]

fill: hidden characters of unseen documents found again; the bigrams know both neighbours, even where the model sees a [MASK]. write:
perplexity a character of unseen documents, read from left to right. similar: Spearman's correlation of cosines with people's marks (STS-B
dev), AUC of pairs that mean the same (AFQMC). probe: logistic regression on fixed vectors of reviews. tune: all weights, three seeds.
adapt: the same after the model has read the reviews to train on, without their labels, as it read its corpus (arXiv:2004.10964). A stopped
run goes on.
"""

import argparse
import json
import math
import os
import statistics
from pathlib import Path

import numpy
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, normalize

from fishpaw.contracts import Batch
from fishpaw.data.records import read_lines
from fishpaw.data.shards import Shards
from fishpaw.demo import reviews
from fishpaw.files import write_atomic
from fishpaw.metrics import accuracy, auc, spearman
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.classify import Classify
from fishpaw.tasks.corpora import Corpus, prepare
from fishpaw.tasks.encode import encode
from fishpaw.tasks.objectives import Masked
from fishpaw.tasks.pretrain import Pretrain
from fishpaw.tasks.training import imprint, seeded
from fishpaw.train.options import Options
from fishpaw.weights.load import load

SETS = ("laws_lawrefbook", "modern", "ms_vs_docs_zh", "drcd", "sanwen", "lccc")
PARTS = ("fill", "write", "similar", "probe", "tune", "adapt")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, default=os.environ.get("FISHPAW_DATA", "."), help="default: FISHPAW_DATA")
parser.add_argument("--model", type=Path, default=Path("runs/fishpaw_small/run/model"))
parser.add_argument("--corpus", type=Path, default=Path("runs/open_corpus"))
parser.add_argument("--out", type=Path, default=Path("runs/small_report"))
parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
parser.add_argument("--smoke", action="store_true", help="few texts and steps: seconds")
arguments = parser.parse_args()
rows, steps = (8, 3) if arguments.smoke else (400, None)
arguments.out /= "smoke" if arguments.smoke else "."                 # a trial never stands in for a run
model, tokenizer = load(arguments.model, mask="unilm")
with seeded(0):
    nets = {"model": model, "untrained": Transformer(model.config).eval()}
V, mask, table = tokenizer.size, tokenizer.mask_id, arguments.out / "result.json"
found = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}
if found.setdefault("of", imprint(model)) != imprint(model):
    parser.error(f"{table} is of another model: give another --out")
found = {part: rows for part, rows in found.items() if part not in arguments.only}              # what was measured before stays

def say(part, name, **figures):
    """A row of the table."""
    found.setdefault(part, {})[name] = figures
    print(f"{part:8} {name:26}", *(f"{key} {value:.4f}" for key, value in figures.items()), flush=True)

def pieces(name):
    """Unseen text of a set in ids, 126 at most, from all over it."""
    texts = (arguments.corpus / "unseen" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    cut = [one.ids[at : at + 126] for one in tokenizer.encode_batch(texts, special=False) for at in range(0, len(one.ids), 126)]
    cut = [numpy.array(ids) for ids in cut if len(ids) > 9]
    return cut[:: -(-len(cut) // rows)]
@torch.inference_mode()
def asked(network, sequences, segment, places, true):
    """Mean loss and share of right answers at places; segment: of all tokens but the first; 0 is read both ways, 1 from left to right."""
    lost = right = done = 0
    for start in range(0, len(sequences), 16):
        part, own = sequences[start : start + 16], places[start : start + 16]
        segments = [(torch.arange(len(ids)) > 0).long() * segment for ids in part]
        batch = Batch.packed([torch.from_numpy(ids) for ids in part], segments=segments)
        at = torch.cat([torch.from_numpy(one) + first for one, first in zip(own, batch.first.tolist(), strict=True)])
        logits, wanted = network(batch, logits_at=at).logits.float(), true[done : done + len(at)]
        lost, right = lost + float(cross_entropy(logits, wanted, reduction="sum")), right + int((logits.argmax(1) == wanted).sum())
        done += len(at)
    return lost / done, right / done

if {"fill", "write"} & set(arguments.only):
    unseen = {name: pieces(name) for name in SETS if (arguments.corpus / "unseen" / f"{name}.txt").exists()}
    unseen = unseen or {path.stem: pieces(path.stem) for path in (arguments.corpus / "unseen").glob("*.txt")}
    shards, pairs = Shards(arguments.corpus / "train"), numpy.zeros(V * V, dtype=numpy.int64)
    for start in range(0, len(shards), 1 << 14):                      # a pair over the end of a document is one in two hundred
        ids = numpy.concatenate([shards[at].ids for at in range(start, min(start + (1 << 14), len(shards)))])
        pairs += numpy.bincount(ids[:-1] * V + ids[1:], minlength=V * V)
    pairs = pairs.reshape(V, V)
    after = ((pairs + 0.01) / (pairs.sum(1, keepdims=True) + 0.01 * V)).astype(numpy.float32)       # P(next | this)
    single = (pairs.sum(0) + 1) / (pairs.sum() + V)
if "fill" in arguments.only:
    for name, texts in unseen.items():
        draw = numpy.random.default_rng(0)
        hidden = [numpy.flatnonzero(draw.random(len(ids)) < 0.15) for ids in texts]
        kept = [(ids, at) for ids, at in zip(texts, hidden, strict=True) if len(at)]
        true = torch.from_numpy(numpy.concatenate([ids[at] for ids, at in kept]))
        seen = [numpy.concatenate([[tokenizer.cls_id], numpy.where(numpy.isin(numpy.arange(len(ids)), at), mask, ids), [tokenizer.sep_id]])
                for ids, at in kept]
        shares = {who: asked(net, seen, 0, [at + 1 for _, at in kept], true)[1] for who, net in nets.items()}
        guessed = []
        for ids, at in kept:
            for place in at:
                left = numpy.log(after[ids[place - 1]]) if place else numpy.log(single)
                right = numpy.log(after[:, ids[place + 1]]) if place + 1 < len(ids) else 0
                guessed.append(int((left + right).argmax()))
        say("fill", name, **shares, bigrams=float(numpy.mean(numpy.array(guessed) == true.numpy())), characters=float(len(true)))
if "write" in arguments.only:
    for name, texts in unseen.items():
        true = torch.from_numpy(numpy.concatenate(texts))
        read, every = [numpy.concatenate([[tokenizer.cls_id], ids[:-1]]) for ids in texts], [numpy.arange(len(ids)) for ids in texts]
        perplexities = {who: math.exp(asked(net, read, 1, every, true)[0]) for who, net in nets.items()}
        chances = numpy.concatenate([[single[ids[0]], *(0.9 * after[ids[:-1], ids[1:]] + 0.1 * single[ids[1:]])] for ids in texts])
        say("write", name, **perplexities, bigrams=float(numpy.exp(-numpy.log(chances).mean())))

if "similar" in arguments.only:
    for name, path in (("STS-B", "sts_b_zh/sts-b-dev.txt"), ("AFQMC", "afqmc/train.txt")):
        cells = [line.text.split("\t") for file in arguments.data.glob(f"similarity/{path}*") for line in read_lines(file)][: rows * 10]
        if not cells:
            print(f"similar: {arguments.data} holds no similarity/{path}")
            continue
        one, other, marks = [cell[0] for cell in cells], [cell[1] for cell in cells], [float(cell[2]) for cell in cells]
        bag = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True).fit(one + other)
        cosines = {"TF-IDF": numpy.asarray(bag.transform(one).multiply(bag.transform(other)).sum(1)).ravel().tolist()}
        for who, net in nets.items():
            for pool in ("pooler", "mean"):
                first, second = (normalize(encode(texts, (net, tokenizer), pool=pool, max_length=128)) for texts in (one, other))
                cosines[f"{who}, {pool}"] = (first * second).sum(1).tolist()
        for who, scores in cosines.items():
            same = [score for score, mark in zip(scores, marks, strict=True) if mark == 1]
            apart = [score for score, mark in zip(scores, marks, strict=True) if mark == 0]
            figure = {"spearman": spearman(scores, marks)} if name == "STS-B" else {"auc": auc(same, apart)}
            say("similar", f"{name} {who}", **figure)

if {"probe", "tune", "adapt"} & set(arguments.only):
    given = reviews(Path(arguments.data) if (Path(arguments.data) / "classification").is_dir() else None)
    train, unseen = (given.train[:200], given.unseen[:50]) if arguments.smoke else (given.train, given.unseen)
    true = [one.labels[0] for one in unseen]
if "probe" in arguments.only:
    for who, net in nets.items():
        known, asked = (normalize(encode([one.text for one in part], (net, tokenizer), pool="mean", max_length=128)).numpy()
                        for part in (train, unseen))
        linear = LogisticRegression(C=100, max_iter=2000).fit(known, [one.labels[0] for one in train])
        say("probe", who, accuracy=accuracy(linear.predict(asked).tolist(), true))

def tuned(part, start):
    """The accuracy of classifiers that began as `start`."""
    scores = []
    for seed in range(1 if arguments.smoke else 3):
        task = Classify.load(start, labels=sorted({one.labels[0] for one in train}), max_length=128, mask="full", seed=seed)
        options = Options(epochs=3, steps=steps, batch_size=32, learning_rate=5e-4, seed=seed, save_seconds=60)
        result = task.fit(train, options=options, out=arguments.out / f"{part}{seed}")
        scores.append(task.evaluate(unseen)["accuracy"])
        print(f"{part:8} seed {seed}  {scores[-1]:.4f}  ({result.seconds:.0f} s)", flush=True)
    say(part, "model, mean", accuracy=statistics.mean(scores), deviation=statistics.stdev(scores) if len(scores) > 1 else 0.0)

if "tune" in arguments.only:
    tuned("tune", arguments.model)
if "adapt" in arguments.only:
    texts, folder = arguments.out / "reviews.txt", arguments.out / "adapted"
    write_atomic(texts, "".join(f"{one.text}\n" for one in train))
    reader = Pretrain.load(arguments.model, {Masked(rate=0.2): 1.0}, length=128)
    pieces_read, _ = prepare(Corpus([texts]), folder, tokenizer, apart=0.0)
    options = Options(steps=steps or 1000, token_budget=4096, learning_rate=5e-4, warmup=0.05, save_seconds=60)
    reader.fit(pieces_read, options=options, out=folder)
    tuned("adapt", folder / "model")
write_atomic(table, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
