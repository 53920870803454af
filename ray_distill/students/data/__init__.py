"""Join snapshot rows with their labels and make tensors of any choice of them, in memory or streamed."""
