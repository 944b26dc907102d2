"""Devices behind `ggml-rpc-server`: which there are, what llama.cpp calls them, whether one is in use."""
