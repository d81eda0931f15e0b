"""The Transformer: embedding, blocks, heads, and the cache that decoding needs."""
