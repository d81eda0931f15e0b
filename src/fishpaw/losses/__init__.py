"""Losses: tensors in, (sum, weight) out, no model. Import the modules; this file imports nothing."""
