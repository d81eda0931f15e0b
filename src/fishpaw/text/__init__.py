"""Text to ids and back: normalisation, vocabularies, WordPiece and byte-level BPE. Import the leaf modules."""
