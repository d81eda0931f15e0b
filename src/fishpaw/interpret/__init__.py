"""What a model's answer rests on: its input, its training examples, what it knows of syntax. For any model that is a function."""
