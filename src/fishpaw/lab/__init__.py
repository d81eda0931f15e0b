"""The laboratory: one file an analysis, each re-measures the claims of its source."""
