"""The only place that asks the operating system: processes, GPUs, memory devices, files, the page cache.

What the system does not tell is None, never 0; a question that may hang has a bound (`bounded_questions`).
"""
