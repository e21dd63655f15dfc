"""The kernel by name: one file per facility, functions named as the system calls. No policy."""
