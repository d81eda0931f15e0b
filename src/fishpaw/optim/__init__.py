"""Optimisers and learning-rate schedules. Import the modules; this file imports nothing."""
