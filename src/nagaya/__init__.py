"""nagaya: a complete container stack in one house."""

__version__ = "0.1.0"
