"""hivenode: machines people own, pooled into one place to train and serve models."""

__version__ = "0.1.0"
