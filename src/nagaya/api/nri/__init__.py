"""The Node Resource Interface, for plugins that see and adjust the containers of pods."""
