"""The messages between daemon, keeper, io and builders: pure, typed, versioned."""
