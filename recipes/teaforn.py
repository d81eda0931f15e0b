"""Classical to modern Chinese by a small encoder-decoder: teacher forcing against TeaForN, arXiv:2010.03494, three seeds each.

    python recipes/teaforn.py --data DIR [--out runs/teaforn] [--smoke]

DIR/corpus/classical_modern_bitext holds pairs of sentences, here those of 24 characters at most: 113,061 of 82 books to train, 300 of ten
other books to evaluate. Both ways begin with the same weights and read the same batches. All is kept in --out: a run that was stopped
goes on, one that ended is only read. Expected at beam 4: teacher forcing BLEU 26.5 ± 0.6, ROUGE-L 57.7; TeaForN 21.9 ± 1.1, 54.4: from
random weights and so briefly it doesn't pay. The classical sentence as it is: 24.9 and 58.2. About 50 minutes of one core.
"""

import argparse
import json
import os
import statistics
from collections import Counter, defaultdict
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.records import read_jsonl
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.search import beam
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.demo import reviews
from fishpaw.metrics import bleu, rouge
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.teaforn import teaforn
from fishpaw.train.loop import fit
from fishpaw.train.options import Options

WAYS = {"teacher forcing": (1.0,), "TeaForN": (1.0, 0.5)}            # what each pass weighs
BEAMS, LONGEST = (1, 4, 8), 24                                       # characters
PAD, UNKNOWN, START, END = range(4)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, default=os.environ.get("FISHPAW_DATA", "."), help="default: FISHPAW_DATA")
parser.add_argument("--out", type=Path, default=Path("runs/teaforn"))
parser.add_argument("--smoke", action="store_true", help="a few steps of a smaller model that copies the bundled reviews: seconds")
arguments = parser.parse_args()
bitext = arguments.data / "corpus" / "classical_modern_bitext" / "docs.jsonl.gz"
if not arguments.smoke and not bitext.is_file():
    parser.error(f"{bitext} is missing: give --data DIR")
arguments.out /= "smoke" if arguments.smoke else "."                 # a trial never stands in for a run
steps, rows, width, layers, count = (3, 4, 32, 1, 6) if arguments.smoke else (1500, 32, 128, 2, 300)

# The text: a record is a chapter, its path names the book, its pairs are two lines each: "古文：…" and "现代文：…".
books = defaultdict(list)
for index, review in enumerate(reviews(None).train if arguments.smoke else ()):
    books[f"part {index % 10}"].append((review.text[:12], review.text[:12]))
for record in () if arguments.smoke else read_jsonl(bitext):
    for pair in str(record.fields["text"]).strip().split("\n\n"):
        classical, modern = (line.partition("：")[2] for line in pair.split("\n"))
        if 0 < len(classical) <= LONGEST and 0 < len(modern) <= LONGEST:
            books[str(record.fields["id"]).split("/")[1]].append((classical, modern))
kept = sorted(books)[::10]
train = [pair for book in sorted(books) if book not in kept for pair in books[book]]
known = {classical for classical, _ in train}                        # histories quote each other
unseen = [pair for book in kept for pair in books[book] if pair[0] not in known]
characters = ["", "□", "", "", *(one for one, _ in Counter(chain.from_iterable(chain.from_iterable(train))).most_common(3996))]
number = {character: index for index, character in enumerate(characters) if character}
print(f"{len(train)} pairs of {len(books) - len(kept)} books to train, {len(unseen)} of {len(kept)} others, {len(characters)} characters")
unseen = unseen[:: max(1, len(unseen) // count)][:count]
sources, targets = zip(*unseen, strict=True)
print(f"the classical sentence as it is: BLEU {100 * bleu(sources, targets):.2f}, ROUGE-L {100 * rouge(sources, targets).rougeL:.2f}")

def encode(pair):
    """Ids of what the encoder reads, and of what the decoder reads and is asked for."""
    classical, modern = ([number.get(one, UNKNOWN) for one in text] for text in pair)
    return torch.tensor([*classical, END]), torch.tensor([START, *modern, END])

def collate(examples):
    sides = [pad_sequence(side, batch_first=True) for side in zip(*examples, strict=True)]
    return tuple(Batch.padded(ids, keep=ids != PAD) for ids in sides)

def loss(model, batch, weights=(1.0,)):
    return teaforn(model, batch[1], encoder_batch=batch[0], weights=weights)

def build(seed):
    """Cross-attention begins by passing on what it reads: with one table for all, the model begins by copying, as most translations do."""
    torch.manual_seed(seed)
    shape = {"segments": 0, "norm_at": "pre", "dropout": 0.0, "attention_dropout": 0.0}      # less than one pass over the pairs
    encoder = ModelConfig(len(characters), width, layers, width // 32, 4 * width, **shape)
    shape |= {"mask": "causal", "heads": ["lm"], "encoder": encoder, "shared_embedding": True}
    model = Transformer(ModelConfig(len(characters), width, layers, width // 32, 4 * width, **shape))
    for layer in model.layers:
        torch.nn.init.eye_(layer.cross.key_value.weight.data[width:])                        # the values
        torch.nn.init.eye_(layer.cross.output.weight.data)
    return model

@torch.no_grad()
def evaluate(model):
    """Loss a character, and for each number of beams BLEU, ROUGE-L and the length against the true one, on the unseen sentences."""
    sums = [loss(model, collate(list(map(encode, unseen[at : at + 50])))) for at in range(0, len(unseen), 50)]
    figures = {"loss": float(sum(one for one, _ in sums) / sum(one for _, one in sums))}
    stepper = TransformerStepper(model, start_id=START)
    for beams in BEAMS:
        said = []
        for at in range(0, len(unseen), 50):
            prompts, _ = collate(list(map(encode, unseen[at : at + 50])))
            found = beam(stepper, prompts, beams=beams, limits=Limits(max_new=LONGEST + 2, ends=(END,)), length_penalty=1.0)
            said += ["".join(characters[token] for token in group[0].content) for group in found]
        figures[f"bleu {beams}"], figures[f"rougeL {beams}"] = 100 * bleu(said, targets), 100 * rouge(said, targets).rougeL
        figures[f"length {beams}"] = sum(map(len, said)) / sum(map(len, targets))
        figures[f"said {beams}"] = said[:10]
    return figures

def run(way, seed):
    """Train, or read what an earlier run has left -> its figures."""
    kept = (folder := arguments.out / f"{way.replace(' ', '_')}_{seed}") / "figures.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    options = Options(steps=steps, batch_size=rows, learning_rate=3e-3, warmup=0.05, seed=seed, save_seconds=120, log_every=50)
    model = build(seed)
    result = fit(model, examples, loss=partial(loss, weights=WAYS[way]), collate=collate, options=options, out=folder,
                 length=lambda pair: len(pair[0]) + len(pair[1]), identity={"weights": WAYS[way]})
    figures = {**evaluate(model), "seconds": result.seconds}
    kept.write_text(json.dumps(figures, ensure_ascii=False, indent=1), encoding="utf-8")
    print(f"{way:16} {seed}  loss {figures['loss']:.4f}  BLEU {figures['bleu 1']:.2f}  {result.seconds:.0f} s", flush=True)
    return figures
examples = [encode(pair) for pair in train]
table = {way: [run(way, seed) for seed in range(3)] for way in WAYS}
print(f"\n{'':16} {'beams':>5} {'BLEU':>6} {'±':>5} {'ROUGE-L':>8} {'±':>5} {'length':>7}")
for way, runs in table.items():
    def over_seeds(figure, runs=runs):
        values = [one[figure] for one in runs]
        return statistics.mean(values), statistics.stdev(values)
    for beams in BEAMS:
        cells = (*over_seeds(f"bleu {beams}"), *over_seeds(f"rougeL {beams}"), over_seeds(f"length {beams}")[0])
        print(f"{way:16} {beams:5} {cells[0]:6.2f} {cells[1]:5.2f} {cells[2]:8.2f} {cells[3]:5.2f} {cells[4]:7.3f}")
    mean, spread = over_seeds("loss")
    print(f"{way:16} loss a character {mean:.4f} ± {spread:.4f}, {over_seeds('seconds')[0]:.0f} s a run")
(arguments.out / "result.json").write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
