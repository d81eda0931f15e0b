"""One review in fifty is a complaint: eleven ways to train on that, and what a searched threshold makes of each.

    python recipes/class_imbalance.py --data DIR [--out runs/class_imbalance] [--seeds 0,1,2] [--only focal dice] [--smoke]

DIR/classification/sentiment_bert4keras is thinned to one negative review for fifty positive ones, differently for each seed; a fifth of
them is held out to search thresholds by. A bag of hashed characters and bigrams (their mean vector, one hidden layer: from 117 complaints
no Transformer learns from nothing) is measured on the 1,863 evaluation reviews:

balanced  the mean of both recalls, deciding at p = 1/2
F1        of the negative reviews if they were one in fifty there too: a false alarm counts as often as it would
AUC       of the scores: what no threshold changes
searched  both again, each with the threshold that is best for it on the held-out reviews

A stopped run goes on. Expected, balanced at 1/2 and searched: cross entropy .500 .724, its prior taken off .684 .724, class weights .573
.743, logit adjustment .646 .739, smooth F1 .539 .699, dice .500 .552, focal and LDAM .500 and below cross entropy's .724.
"""

import argparse
import json
import os
import random
import statistics
import zlib
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fishpaw.demo import reviews
from fishpaw.losses import classification, imbalance
from fishpaw.metrics import auc, best_threshold
from fishpaw.train.loop import fit
from fishpaw.train.options import Options

RARE, FREQUENT, RATIO = "neg", "pos", 50
BUCKETS, WIDTH = 2**15, 64
COLUMNS = ("balanced", "F1", "AUC", "balanced, searched", "F1, searched")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, default=os.environ.get("FISHPAW_DATA"), help="default: FISHPAW_DATA, else the bundled reviews")
parser.add_argument("--out", type=Path, default=Path("runs/class_imbalance"))
parser.add_argument("--seeds", default="0,1,2")
parser.add_argument("--only", nargs="+", metavar="LOSS", help="losses, by name")
parser.add_argument("--epochs", type=float, default=3.0)
parser.add_argument("--smoke", action="store_true", help="a few steps on the bundled reviews, two losses: seconds")
arguments = parser.parse_args()
arguments.out /= "smoke" if arguments.smoke else "."                 # a trial never stands in for a run
ratio = 5 if arguments.smoke else RATIO
found = reviews(Path(arguments.data) if arguments.data and not arguments.smoke else None)

def losses(counts):
    """name -> loss(logits [b 2], labels [b]), of training rows `counts` [2], the rare class second."""
    def score(loss):
        return lambda logits, labels: loss(logits[:, 1] - logits[:, 0], labels)

    ways = {
        "cross entropy": classification.cross_entropy,
        "post hoc": classification.cross_entropy,                    # the same weights: their scores are adjusted
        "class weights": partial(imbalance.weighted, weights=1 / counts),
        "effective number": partial(imbalance.weighted, weights=imbalance.effective_weights(counts, beta=0.999)),
        "focal": imbalance.focal,
        "dice": score(imbalance.dice),
        "smooth F1": score(imbalance.smooth_f1),
        "F1-weighted": score(imbalance.f1_weighted),
        "logit adjustment": partial(imbalance.logit_adjusted, prior=counts),
        "balanced softmax": partial(imbalance.balanced_softmax, counts=counts),
        "LDAM": partial(imbalance.ldam, counts=counts, margin=2.0, scale=1.0),
    }
    return {name: ways[name] for name in arguments.only or (["cross entropy", "smooth F1"] if arguments.smoke else ways)}

def thinned(seed):
    """Training reviews one in `ratio` of which is rare, in a fixed order, and the fifth of each kind that is held out."""
    kinds = {label: [one for one in found.train if one.labels == (label,)] for label in (FREQUENT, RARE)}
    for kind in kinds.values():
        random.Random(seed).shuffle(kind)
    kinds[RARE] = kinds[RARE][: max(10, len(kinds[FREQUENT]) // ratio)]
    held = {label: kind[: len(kind) // 5] for label, kind in kinds.items()}
    return [one for label, kind in kinds.items() for one in kind[len(held[label]) :]], held[RARE] + held[FREQUENT]

def measure(positive, negative, threshold):
    """Balanced accuracy, and F1 with as many frequent ones for a rare one as in training."""
    hit, alarm = (sum(score >= threshold for score in scores) / len(scores) for scores in (positive, negative))
    return (1 + hit - alarm) / 2, 2 * hit / (1 + hit + ratio * alarm)

def grams(example):
    """The hashed characters and pairs of neighbours of a review, and its label, 1 for the rare one."""
    places = [(at, at + size) for size in (1, 2) for at in range(len(example.text) + 1 - size)]
    return [zlib.crc32(example.text[at:end].encode()) % BUCKETS for at, end in places], int(example.labels == (RARE,))

def collate(features):
    lengths = torch.tensor([0, *(len(ids) for ids, _ in features[:-1])])
    return torch.tensor([one for ids, _ in features for one in ids]), lengths.cumsum(0), torch.tensor([label for _, label in features])

class Bag(nn.Module):
    """ids [n] of texts that begin at offsets [b] -> logits [b 2]."""

    def __init__(self):
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, WIDTH)
        self.rest = nn.Sequential(nn.Dropout(0.3), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def forward(self, ids, offsets):
        return self.rest(self.table(ids, offsets))

@torch.no_grad()
def scores(model, examples, adjust):
    """Of the rare and of the frequent examples the log-odds of being rare, after `adjust`."""
    ids, offsets, labels = collate([grams(one) for one in examples])
    odds = adjust(model(ids, offsets)).diff(dim=1).squeeze(1)
    return odds[labels == 1].tolist(), odds[labels == 0].tolist()

def run(name, loss, train, held, counts, seed):
    """Train, or read what an earlier run has left -> its figures."""
    same = "cross entropy" if name == "post hoc" else name
    folder = arguments.out / f"{same.replace(' ', '_')}_{arguments.epochs:g}_{seed}"
    kept = folder / f"figures {name}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    model = Bag()
    options = Options(epochs=arguments.epochs, steps=4 if arguments.smoke else None, batch_size=64, learning_rate=5e-3, seed=seed,
                      save_seconds=60, log_every=50)
    result = fit(model, [grams(one) for one in train], loss=lambda model, batch: loss(model(batch[0], batch[1]), batch[2]), collate=collate,
                 options=options, length=lambda one: len(one[0]), out=folder, identity={"loss": same, "ratio": ratio})  # fmt: skip
    adjust = partial(imbalance.post_hoc, prior=counts) if name == "post hoc" else torch.clone
    (rare, frequent), own = scores(model, found.unseen, adjust), scores(model, held, adjust)
    balanced, f1 = measure(rare, frequent, 0.0)
    searched = [best_threshold(*own, measure=what).value for what in ("balanced_accuracy", "f1")]
    again = [measure(rare, frequent, threshold)[at] for at, threshold in enumerate(searched)]
    figures = dict(zip(COLUMNS, (balanced, f1, auc(rare, frequent), *again), strict=True)) | {"seconds": result.seconds}
    kept.write_text(json.dumps(figures), encoding="utf-8")
    print(f"{name:17} seed {seed}  balanced {balanced:.4f}  F1 {f1:.4f}  AUC {figures['AUC']:.4f}  {result.seconds:.0f} s", flush=True)
    return figures

table = {}
for seed in map(int, arguments.seeds.split(",")):
    train, held = thinned(seed)
    counts = torch.tensor([float(sum(one.labels == (label,) for one in train)) for label in (FREQUENT, RARE)])
    for name, loss in losses(counts).items():
        table.setdefault(name, []).append(run(name, loss, train, held, counts, seed))

print(f"\n{found.source}; {len(train)} to train on, {int(counts[1])} of them rare, {sum(one.labels == (RARE,) for one in held)} held out\n")
print(f"{'':17}" + "".join(f"{column:>20}" for column in COLUMNS))
for name, seeds in table.items():
    cells = []
    for column in COLUMNS:
        values = [one[column] for one in seeds]
        cells.append(f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.4f}")
    print(f"{name:17}" + "".join(f"{cell:>20}" for cell in cells))
(arguments.out / "result.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
