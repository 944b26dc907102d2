"""Both ends of the keeper's socket: messages, connections of threads and event loops, finding a keeper.

`json_lines` is the form, `messages` what a client may ask, `launch` starts a keeper where none runs.
"""
