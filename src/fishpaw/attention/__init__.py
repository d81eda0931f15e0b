"""Attention: one file a kind, each a `contracts.Attention` made by its `build`; memory.py holds what they remember between steps."""
