"""Reading, naming and writing the numbers of a model."""
