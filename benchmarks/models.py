"""The models that the benchmarks run: BERT-base, GPT-2 (or tiny ones) with random weights in one folder, opened by us and by each peer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fishpaw.config import ModelConfig
from fishpaw.model.transformer import Transformer
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.save import save

__all__ = ["bert4torch", "gpt", "make", "sentence_transformer", "shape", "transformers_model"]

CLASSES = {"backbone": "BertModel", "mlm": "BertForMaskedLM", "lm": "GPT2LMHeadModel"}
_BERTS = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "vocab_size": "vocab_size",
          "n_positions": "max_position_embeddings", "activation_function": "hidden_act", "layer_norm_epsilon": "layer_norm_eps"}
_GPT2 = {"layer_type": "LLMLayer", "final_layernorm": True, "segment_vocab_size": 0, "tie_word_embeddings": True}


def shape(*, smoke: bool, vocab_size: int = 21128, head: str = "backbone") -> ModelConfig:
    """BERT-base, or two layers of 32 for a smoke run; with the masked-language-model head or without any."""
    heads = ("mlm",) if head == "mlm" else ()
    if smoke:
        return ModelConfig(vocab_size=vocab_size, hidden_size=32, layers=2, attention_heads=4, intermediate_size=64, max_positions=128,
                           heads=heads)
    return ModelConfig(vocab_size=vocab_size, hidden_size=768, layers=12, attention_heads=12, intermediate_size=3072, heads=heads)


def gpt(layers: int, width: int, *, vocab_size: int = 21128, longest: int = 512) -> ModelConfig:
    """GPT-2 with heads of 64 (or one of all) and a Chinese vocabulary."""
    return ModelConfig(vocab_size=vocab_size, hidden_size=width, layers=layers, attention_heads=max(1, width // 64), family="gpt2",
                       intermediate_size=4 * width, max_positions=longest, segments=0, activation="gelu_tanh", mask="causal",
                       norm_at="pre", norm={"name": "layer", "eps": 1e-5}, embedding_norm=False, heads=("lm",))


def make(folder: Path, config: ModelConfig, tokenizer: WordPiece | None = None) -> Path:
    """Save a model of random weights, biases and norms included: weights near 0 make attention uniform, and then faults don't show."""
    model = Transformer(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            near = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(mean=near, std=0.05)
    save(model, folder, tokenizer)
    return folder


def sentence_transformer(folder: Path, *, longest: int = 512) -> Any:
    """sentence-transformers on the same folder: mean over the tokens, torch's fused attention."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sentence_transformer.modules import Transformer as Reader

    reader = Reader(str(folder), max_seq_length=longest, model_kwargs={"attn_implementation": "sdpa", "add_pooling_layer": False})
    return SentenceTransformer(modules=[reader, Pooling(reader.get_embedding_dimension(), pooling_mode="mean")], device="cpu").eval()


def transformers_model(folder: Path, *, head: str = "backbone", dtype: torch.dtype = torch.float32) -> Any:
    """The peer with torch's fused attention, in evaluation mode."""
    import transformers

    more = {"add_pooling_layer": False} if head == "backbone" else {}
    model = getattr(transformers, CLASSES[head]).from_pretrained(str(folder), attn_implementation="sdpa", dtype=dtype, **more)
    return model.eval()


def bert4torch(folder: Path, *, head: str = "backbone", model: str = "bert", application: str = "encoder") -> Any:
    """bert4torch's BERT (called as model([ids, segments])) or "gpt2" ([ids]), with torch's fused attention. application "unilm" gives BERT
    that mask. It wants a configuration of its own, under BERT's names."""
    with _without_vision():
        from bert4torch.models import build_transformer_model

    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values.pop("fishpaw", None)
    if model == "gpt2":
        values = {**{_BERTS[name]: value for name, value in values.items() if name in _BERTS}, **_GPT2}
        values["intermediate_size"] = 4 * values["hidden_size"]
    more = {"with_mlm": True} if head == "mlm" else {}
    own = folder.parent / f"{folder.name}-bert4torch" / "bert4torch_config.json"
    own.parent.mkdir(exist_ok=True)
    own.write_text(json.dumps(values), encoding="utf-8")
    return build_transformer_model(config_path=str(own), checkpoint_path=str(folder / "model.safetensors"), model=model,
                                   application=application, _attn_implementation="sdpa", verbose=0, **more).eval()


@contextmanager
def _without_vision() -> Iterator[None]:
    """bert4torch 0.6.2 imports torchvision, which it doesn't declare, for video models that nobody asked for: where it is missing,
    empty modules stand in while bert4torch is imported."""
    names = ["torchvision", "torchvision.transforms", "torchvision.transforms.v2", "torchvision.transforms.v2.functional"]
    if find_spec("torchvision") is not None:
        yield
        return
    for name in names:
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
        sys.modules[name] = module
        above, _, last = name.rpartition(".")
        if above:
            setattr(sys.modules[above], last, module)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
