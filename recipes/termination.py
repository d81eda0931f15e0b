"""Texts that never end: how often does a small language model go on for ever, and what do the remedies cost? (arXiv:2002.02492, 2210.00660)

    python recipes/termination.py --data DIR [--out runs/termination] [--smoke]

Three character models (4 layers of 128 units, RoPE) read the same sentences of DIR/corpus/classical_modern_bitext in the same order: an
ordinary softmax, a self-terminating and a non-monotonic one (epsilon 1e-3: at most 693 new tokens are proven). Each continues the first
10 characters of 1,000 unseen sentences in eleven ways; printed is the share that has not ended after 700 tokens, and the perplexity of
what really followed. Expected: the softmax doesn't end in 8.5 % with greedy search, 1.5 % and 0.6 % with 2 and 4 beams, nearly all loops;
the other two always end, at perplexity 197 (self-terminating) and 126 (non-monotonic) against 128; 30 minutes beside other work.
All is kept in --out: a run that was stopped goes on, one that ended is only read.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.records import read_jsonl
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import TopK, TopP
from fishpaw.decoding.sample import sample
from fishpaw.decoding.search import beam, greedy
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.decoding.termination import ConsistentTopK, ConsistentTopP, LoopDetector, ending_of, termination
from fishpaw.demo import reviews
from fishpaw.losses.generation import masked_cross_entropy
from fishpaw.losses.termination import non_monotone, self_terminating
from fishpaw.model.transformer import Transformer
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.loop import fit
from fishpaw.train.options import Options

EPSILON, CONTEXT = 1e-3, 10
LOSSES = {"softmax": None, "self_terminating": self_terminating, "non_monotone": non_monotone}
START = {"softmax": 0.0, "self_terminating": 4.0, "non_monotone": -4.0}  # bias of the end: half open, the gate ends all at once
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, default=os.environ.get("FISHPAW_DATA", "."), help="default: FISHPAW_DATA")
parser.add_argument("--out", type=Path, default=Path("runs/termination"))
parser.add_argument("--smoke", action="store_true", help="a few steps of a smaller model on the bundled reviews: seconds")
arguments = parser.parse_args()
source = arguments.data / "corpus" / "classical_modern_bitext" / "docs.jsonl.gz"
if not arguments.smoke and not source.is_file():
    parser.error(f"there is no {source}: give --data DIR")
arguments.out /= "smoke" if arguments.smoke else "."                 # a trial never stands in for a run
steps, budget, width, layers = (4, 256, 32, 2) if arguments.smoke else (900, 1024, 128, 4)
prefixes, at_once, longest = (6, 3, 30) if arguments.smoke else (1000, 250, 700)

# The text: modern sentences of 16 to 62 characters, every fiftieth unseen.
texts = [review.text for review in reviews(None).train] if arguments.smoke else []
for record in () if arguments.smoke else read_jsonl(source):
    lines = str(record.fields["text"]).splitlines()
    texts += [line.removeprefix("现代文：").strip() for line in lines if line.startswith("现代文：")]
texts = [text for text in texts if 16 <= len(text) <= 62]
vocab = characters(texts[:100_000], most=3000)
tokenizer = WordPiece(vocab)
end, pad = tokenizer.sep_id, tokenizer.pad_id
rows = tokenizer.encode_ids(texts, max_length=64)
sentences = torch.from_numpy(rows.ids).long().split(rows.lengths.tolist())      # [CLS] characters [SEP]
sentences = [one for one in sentences if len(one) > CONTEXT + 2]
unseen, train = sentences[::50], [one for index, one in enumerate(sentences) if index % 50]
unseen = (unseen if len(unseen) >= prefixes else sentences)[:prefixes]

def collate(batch):
    return pad_sequence(list(batch), batch_first=True, padding_value=pad)

def cross_entropy(name, model, ids, ignored=0):
    """Loss and count of all targets but the first `ignored`; a causal model doesn't see the padding, which is on the right."""
    logits, targets = model(ids[:, :-1]).logits, ids[:, 1:].masked_fill(ids[:, 1:] == pad, -100)
    generated = torch.arange(targets.shape[1]).expand_as(targets) >= CONTEXT
    targets = targets.masked_fill(torch.arange(targets.shape[1]) < ignored, -100)
    if LOSSES[name] is None:
        return masked_cross_entropy(logits.flatten(0, 1), targets.flatten())
    return LOSSES[name](logits, targets, generated, end=end, epsilon=EPSILON)

def trained(name):
    """The model, trained or read, with the same weights to begin with and the same batches."""
    torch.manual_seed(0)
    ending = None if name == "softmax" else {"name": name, "epsilon": EPSILON, "end": end}
    head = {"name": "lm", "bias": True, "ending": ending}
    shape = {"position": "rotary", "mask": "causal", "segments": 0, "norm_at": "pre", "embedding_norm": False, "heads": [head]}
    model = Transformer(ModelConfig(len(vocab), width, layers, width // 32, 4 * width, dropout=0.0, attention_dropout=0.0, **shape))
    with torch.no_grad():
        model.heads["lm"].bias[end] = START[name]
    options = Options(steps=steps, token_budget=budget, learning_rate=2e-3, save_seconds=60, log_every=50)
    result = fit(model, train, loss=lambda model, ids: cross_entropy(name, model, ids), collate=collate, options=options,
                 out=arguments.out / name, identity={"head": name})  # fmt: skip
    print(f"{name:18} trained {result.step} steps in {result.seconds:.0f} s, loss {result.loss:.3f}", flush=True)
    return model

ENDS = (end,)
FILTERS = {
    "top-k 2": TopK(2), "top-k 4": TopK(4), "top-p 0.2": TopP(0.2), "top-p 0.4": TopP(0.4),
    "consistent top-k 2": ConsistentTopK(2, ENDS), "consistent top-k 4": ConsistentTopK(4, ENDS),
    "consistent top-p 0.2": ConsistentTopP(0.2, ENDS), "consistent top-p 0.4": ConsistentTopP(0.4, ENDS),
}  # fmt: skip
WAYS = ("greedy", "beam 2", "beam 4", *FILTERS)

def continued(stepper, prompts, way):
    """A hypothesis a prompt."""
    limits = Limits(longest, ends=ENDS)
    if way == "greedy":
        return greedy(stepper, prompts, limits=limits)
    if way in FILTERS:
        generator = torch.Generator().manual_seed(0)
        return [found[0] for found in sample(stepper, prompts, limits=limits, processors=[FILTERS[way]], generator=generator)]
    return [found[0] for found in beam(stepper, prompts, beams=int(way[-1]), limits=limits)]

def figures(name):
    kept = arguments.out / f"{name}.json"
    table = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    model = trained(name).eval()
    stepper = TransformerStepper(model)
    print(termination(ending_of(model), Limits(longest, ends=ENDS)), flush=True)
    if "perplexity" not in table:
        with torch.no_grad():
            sums = [cross_entropy(name, model, collate(unseen[at : at + 50]), CONTEXT) for at in range(0, len(unseen), 50)]
        table["perplexity"] = math.exp(sum(float(total) for total, _ in sums) / sum(float(count) for _, count in sums))
    for way in WAYS:
        if way in table:
            continue
        began, found = time.perf_counter(), []
        for at in range(0, len(unseen), at_once):
            prompts = Batch.padded(torch.stack([one[: CONTEXT + 1] for one in unseen[at : at + at_once]]))
            found += continued(stepper, prompts, way)
        endless = [one for one in found if not one.ended]
        loops = sum(bool(LoopDetector()(torch.tensor([one.tokens]))) for one in endless)
        mean = sum(len(one.tokens) for one in found) / len(found)
        table[way] = {"endless": len(endless) / len(found), "loops": loops / len(found), "tokens": mean,
                      "longest": max(len(one.tokens) for one in found)}  # fmt: skip
        print(f"{name:18} {way:21} {len(endless) / len(found):7.2%} endless, {loops} of {len(endless)} in a loop, "
              f"{mean:5.1f} tokens, {time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
        kept.write_text(json.dumps(table), encoding="utf-8")
    return table

table = {name: figures(name) for name in LOSSES}
print(f"\nnot ended after {longest} tokens" + "".join(f"{name:>19}" for name in table))
for way in WAYS:
    print(f"{way:26}" + "".join(f"{one[way]['endless']:19.2%}" for one in table.values()))
print(f"{'perplexity':26}" + "".join(f"{one['perplexity']:19.2f}" for one in table.values()))
(arguments.out / "result.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
