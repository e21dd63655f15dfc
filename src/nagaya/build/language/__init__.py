"""The Dockerfile language: bytes to typed instructions, variables, .dockerignore. Pure: no I/O."""
