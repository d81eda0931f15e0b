"""Decoding: greedy, beam and sampled continuations of anything that steps. Import from its files: `fishpaw.decoding.search.beam`."""
