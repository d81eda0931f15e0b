"""From files to batches: records, the order of examples, padding. Import the modules; this file imports nothing."""
