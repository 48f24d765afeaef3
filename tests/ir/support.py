"""What the tests of this folder share: a lowered module with random tensors, random inputs, one graph of every op."""
