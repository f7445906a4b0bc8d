"""The mathematics of quantization: arrays in, arrays out, nothing of the graph."""
