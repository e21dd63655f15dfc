"""MicroVMs: the machine as data, engines that run it, the guest's agent and how to talk to it."""
