"""llama.cpp without its server: a worker process over llama-cpp-python that answers like llama-server.

`binding_engine` is the engine; `binding_worker` is its process, which uses the modules beside it.
"""
