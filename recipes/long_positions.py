"""A learned table of 128 positions reads 512: hierarchical positions before and after 500 steps, beside an interpolated table and RoPE.

    python recipes/long_positions.py --corpus runs/open_corpus [--model fishpaw-small] [--out runs/long_positions] [--smoke]

The twin of --model: its weights, but a learned table of 128 positions in the place of rotations, which begins as sinusoids as large as
the characters' vectors (from small random values it learns next to nothing in so few steps), and taught with it to find hidden
characters in rows of 128. Then its table is made to serve 512 without training (kexue.fm/archives/7947), and trained on for 500 steps at
that length. Measured on unseen documents of 510 characters and more: the share of hidden characters found in each stretch of 128 places,
and, as "cut", where each stretch is read for itself. A stopped run goes on. --corpus is what recipes/open_corpus.py made.
"""

import argparse
import json
from pathlib import Path

import numpy
import torch

from fishpaw.contracts import Batch
from fishpaw.data.shards import Document, Shards, write
from fishpaw.demo import reviews
from fishpaw.hub import SMALL
from fishpaw.model.transformer import Transformer
from fishpaw.positions.sinusoidal import sinusoids
from fishpaw.tasks.objectives import Masked
from fishpaw.tasks.pretrain import Pretrain
from fishpaw.tasks.training import seeded
from fishpaw.train.options import Options
from fishpaw.weights.load import load
from fishpaw.weights.surgery import longer_positions

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--corpus", type=Path, default=Path("runs/open_corpus"), help="what recipes/open_corpus.py made")
parser.add_argument("--model", default=SMALL)
parser.add_argument("--out", type=Path, default=Path("runs/long_positions"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--smoke", action="store_true", help="a few steps on few texts: seconds")
arguments = parser.parse_args()
arguments.out /= "smoke" if arguments.smoke else "."                 # a trial never stands in for a run
if not arguments.smoke and not (arguments.corpus / "vocab.txt").is_file():
    parser.error(f"{arguments.corpus} holds no vocab.txt: run recipes/open_corpus.py, or give --corpus DIR")
SHORT, LONG = 128, 512
given, tokenizer = load(arguments.model, mask="unilm")
if arguments.smoke:
    arguments.corpus, texts = arguments.out / "corpus", [one.text for one in reviews(None).train]
    for name, part in (("train", texts[20:]), ("dev", texts[:20])):
        documents = (Document(one.ids) for one in tokenizer.encode_batch(part, special=False))
        write(documents, arguments.corpus / name, vocab_size=tokenizer.size)
    (arguments.corpus / "unseen").mkdir(exist_ok=True)
    (arguments.corpus / "unseen" / "reviews.txt").write_text("".join(texts[:20] * 3) + "\n", encoding="utf-8")
with seeded(arguments.seed):
    changes = {"position": "learned", "max_positions": SHORT, "mask": "full", "heads": ("mlm",), "dropout": 0.0}
    twin = Transformer(given.config.change(changes))
twin.load_state_dict(given.state_dict(), strict=False)               # all but the table, which is new
with torch.no_grad():
    waves = sinusoids(torch.arange(SHORT), given.config.embedding).float()
    twin.positions[0].table.weight.copy_(waves * given.table.square().mean().sqrt() / waves.square().mean().sqrt())

unseen = []
for path in sorted((arguments.corpus / "unseen").glob("*.txt")):
    ids = [one.ids for one in tokenizer.encode_batch(path.read_text(encoding="utf-8").splitlines(), special=False)]
    unseen += [numpy.array(one[: LONG - 2]) for one in ids if len(one) >= LONG - 2][:40]
draw = numpy.random.default_rng(0)
hidden = [numpy.flatnonzero(draw.random(len(ids)) < 0.15) for ids in unseen]
table = {}

@torch.inference_mode()
def found(model, length):
    """Of each stretch of 128 places the share of hidden characters that are found, in rows of `length`."""
    right = numpy.zeros((2, LONG // SHORT))
    for ids, places in zip(unseen, hidden, strict=True):
        seen = numpy.where(numpy.isin(numpy.arange(len(ids)), places), tokenizer.mask_id, ids)
        for start in range(0, len(ids), length - 2):
            own = places[(places >= start) & (places < start + length - 2)]
            row = numpy.concatenate([[tokenizer.cls_id], seen[start : start + length - 2], [tokenizer.sep_id]])
            batch = Batch.packed([torch.from_numpy(row)])
            said = model(batch, logits_at=torch.from_numpy(own - start + 1)).logits.argmax(1).numpy()
            numpy.add.at(right, (0, own // SHORT), said == ids[own])
            numpy.add.at(right, (1, own // SHORT), 1)
    return (right[0] / right[1]).round(4).tolist()

def say(name, model, length=LONG):
    """A row of the table."""
    table[name] = found(model.eval(), length)
    print(f"{name:44}", *(f"{share:.3f}" for share in table[name]), f"  all {numpy.mean(table[name]):.3f}", flush=True)

def taught(model, name, length, steps, rate):
    """`model` after MLM on rows of `length`, 2,048 tokens a step."""
    options = Options(steps=3 if arguments.smoke else steps, token_budget=2048, learning_rate=rate, warmup=0.05, seed=arguments.seed,
                      evaluate_every=3 if arguments.smoke else 250)  # fmt: skip
    task = Pretrain(model, tokenizer, {Masked(rate=0.2): 1.0}, length=length)
    result = task.fit(Shards(arguments.corpus / "train"), Shards(arguments.corpus / "dev"), options=options, out=arguments.out / name)
    print(f"{name}: {result.step} steps, {result.seconds:.0f} s", flush=True)
    return task.model

print(f"{len(unseen)} unseen documents; characters found at places 0-127, 128-255, 256-383, 384-511")
say("RoPE (the model itself), whole", given)
say("RoPE, cut into 128", given, SHORT)
twin = taught(twin, "at128", SHORT, 2500, 1e-3)
say("learned positions, cut into 128", twin, SHORT)
for way in ("hierarchical", "interpolation"):
    say(f"{way}, before", longer_positions(twin, LONG, by=way))
for way in ("hierarchical", "interpolation"):
    say(f"{way}, after 500 steps", taught(longer_positions(twin, LONG, by=way), way, LONG, 500, 3e-4))
arguments.out.mkdir(parents=True, exist_ok=True)
(arguments.out / "result.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
