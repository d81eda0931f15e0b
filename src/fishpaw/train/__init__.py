"""Training: the loop, its checkpoints, its log. Import the modules; this file imports nothing."""
