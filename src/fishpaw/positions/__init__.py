"""Positions: one file a kind, each a `contracts.Position` made by its `build`."""
