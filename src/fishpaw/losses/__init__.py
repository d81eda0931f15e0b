"""Losses: tensors in, (sum, weight) out, no model; penalties, from one loss of a model to another. This file imports nothing."""
