"""The llama.cpp engine: a managed llama-server process per loaded model (`engine`)."""
