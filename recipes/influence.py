"""Which training reviews pushed five predictions, for a person to read: TracIn along a training of fishpaw-small.

    python recipes/influence.py [--data DIR] [--model fishpaw-small] [--out runs/influence] [--examples 1000] [--smoke]

The model learns sentiment from some of the reviews of DIR (without one: those that come with fishpaw), its way is kept at checkpoints, and
for five unseen reviews the sum over all of it says what each training review added to the log-odds of what is predicted (arXiv:2002.08484).
Printed: the three that spoke for it most and the three that spoke against it, and beside them what doesn't need gradients: which training
reviews share most characters. A training that is there is not done again. Expected with the data: some ten minutes of one core.
"""

import argparse
import json
import os
import random
import statistics
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer

from fishpaw.demo import reviews
from fishpaw.hub import SMALL
from fishpaw.tasks.classify import Classify
from fishpaw.tasks.influence import Influence

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, default=os.environ.get("FISHPAW_DATA"), help="default: FISHPAW_DATA, else the bundled reviews")
parser.add_argument("--model", default=SMALL)
parser.add_argument("--out", type=Path, default=Path("runs/influence"))
parser.add_argument("--examples", type=int, default=1000, help="training reviews")
parser.add_argument("--steps", type=int, default=250)
parser.add_argument("--rate", type=float, default=5e-5)
parser.add_argument("--checkpoints", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--smoke", action="store_true", help="a few bundled reviews and steps: seconds")
arguments = parser.parse_args()
arguments.out /= "smoke" if arguments.smoke else "."                 # a trial never stands in for a run
given = reviews(None if arguments.smoke or not arguments.data else Path(arguments.data))
draw = random.Random(arguments.seed)
train = draw.sample(given.train, min(len(given.train), 24 if arguments.smoke else arguments.examples))
asked = draw.sample([one for one in given.unseen if 12 <= len(one.text) <= 60], 5)
labels = sorted({one.labels[0] for one in given.train})

if (arguments.out / "path").is_dir():
    found = Influence(Classify.load(arguments.out / "model"), train, checkpoints=arguments.out / "path")
else:
    task = Classify.load(arguments.model, labels=labels, max_length=96, mask="full", seed=arguments.seed)
    steps, kept = (4, 2) if arguments.smoke else (arguments.steps, arguments.checkpoints)
    found = Influence.fit(task, train, arguments.out, steps=steps, learning_rate=arguments.rate, checkpoints=kept, seed=arguments.seed)
print(f"{len(train)} reviews; accuracy on {len(given.unseen)} unseen ones: {found.task.evaluate(given.unseen)['accuracy']:.3f}")
bag = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True).fit([one.text for one in train])
known = bag.transform([one.text for one in train])
result, same = [], []
for one, answer in zip(asked, found.of([one.text for one in asked]), strict=True):
    ranked = sorted(answer.examples, key=lambda example: -example.contribution)
    alike = known @ bag.transform([one.text]).T.toarray().ravel()
    print(f"\n{one.text}\n  said {answer.label}, is {one.labels[0]}; log-odds {answer.start:+.2f} -> {answer.end:+.2f}; "
          f"contributions add up to {answer.total:+.2f}, of {answer.size:.1f} in absolute values")  # fmt: skip
    for title, part in (("for", ranked[:3]), ("against", ranked[:-4:-1])):
        for example in part:
            print(f"    {title:8}{example.contribution:+.3f}  {example.labels[0]}  {example.text[:60]}")
    nearest = sorted(range(len(train)), key=lambda index: -alike[index])[:3]
    for index in nearest:
        print(f"    alike   {alike[index]:.3f}   {train[index].labels[0]}  {train[index].text[:60]}")
    by_index = {example.index: example.contribution for example in answer.examples}
    places = {example.index: place / len(ranked) for place, example in enumerate(ranked)}
    same.append(statistics.mean(place for index, place in places.items() if train[index].labels[0] == answer.label))
    result.append({"text": one.text, "true": one.labels[0], "label": answer.label, "start": answer.start, "end": answer.end,
                   "total": answer.total, "size": answer.size, "error": answer.error,
                   "examples": [{"text": e.text, "label": e.labels[0], "contribution": e.contribution} for e in ranked[:3] + ranked[-3:]],
                   "alike": [{"text": train[index].text, "contribution": by_index[index]} for index in nearest]})  # fmt: skip
print(f"\nmean place of reviews of the label that was said, 0 the first and 1 the last: {statistics.mean(same):.3f} (by chance 0.5)")
(arguments.out / "result.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
