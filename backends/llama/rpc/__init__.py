"""Devices behind `ggml-rpc-server`: the list of them, llama.cpp's names, and whether a server is in use."""
