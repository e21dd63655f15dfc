"""nagaya-vmm: one microVM behind Firecracker's REST API."""
