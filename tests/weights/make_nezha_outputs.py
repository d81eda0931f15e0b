"""Write the NEZHA models that test_bert_layout.py reads, and what transformers 4.40.2, the last release with the family, makes of them.

Needs that release, in an environment of its own; the tests and the library do not:
    python3 -m venv /tmp/old && /tmp/old/bin/pip install torch numpy transformers==4.40.2
    /tmp/old/bin/python tests/weights/make_nezha_outputs.py               # rewrites tests/weights/nezha/, about 130 kB
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent / "nezha"
SIZES = {"vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 17,
         "max_position_embeddings": 19, "max_relative_position": 3}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pretraining": ("NezhaForPreTraining", SIZES),
    "mlm": ("NezhaForMaskedLM", SIZES | {"num_hidden_layers": 1, "type_vocab_size": 1, "hidden_act": "gelu_new", "num_attention_heads": 2}),
    "classification": ("NezhaForSequenceClassification", SIZES | {"max_relative_position": 64, "num_labels": 5, "hidden_act": "relu"}),
    "causal": ("NezhaModel", SIZES | {"is_decoder": True, "layer_norm_eps": 1e-3, "max_relative_position": 2}),
}


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    for name, (kind, values) in CASES.items():
        torch.manual_seed(len(name))
        model = getattr(transformers, kind)(transformers.NezhaConfig(**values)).eval()
        for key, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("LayerNorm.weight" in key), std=0.6)
        model.save_pretrained(HERE / name)
        (HERE / name / "generation_config.json").unlink(missing_ok=True)
        ids, segments = torch.randint(0, 31, (3, 11)), torch.randint(0, model.config.type_vocab_size, (3, 11))
        keep = torch.arange(11) < torch.tensor([[7], [11], [4]])
        with torch.no_grad():
            out = model(ids, token_type_ids=segments, attention_mask=keep.long(), output_hidden_states=True)
        found = {"ids": ids, "segments": segments, "keep": keep}
        found |= {f"hidden {i}": state for i, state in enumerate(out.hidden_states)}
        found |= {key: out[key] for key in ("prediction_logits", "seq_relationship_logits", "logits", "pooler_output") if key in out}
        np.savez_compressed(HERE / f"{name}.npz", **{key: value.numpy() for key, value in found.items()}, allow_pickle=False)


if __name__ == "__main__":
    main()
