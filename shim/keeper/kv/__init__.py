"""KV state of conversations and warm prompts, kept on disk while their engine is away.

`carry` saves and restores, `keeping` and `saved_files` hold the byte budget, `engine_folder` is of one.
"""
