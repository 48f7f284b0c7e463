"""Keras models by configuration: what is allowed in one, whether it fits the data, what it costs. Without Keras."""
