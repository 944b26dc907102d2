"""The vLLM engine: a managed vLLM API server, from a model folder in Hugging Face form.

`model_folder` reads what is in the folder, `program` finds vLLM and reads which flags its version has,
`server_arguments` makes the command line, `vllm_engine` runs it.
"""
