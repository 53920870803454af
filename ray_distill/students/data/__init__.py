"""Join snapshot rows with their labels and make tensors of them, in memory or streamed."""
