"""Dockerfiles to images: the language and the graph (pure), then context, cache and execution."""
