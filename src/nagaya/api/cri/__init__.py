"""The Container Runtime Interface, for kubelets."""
