"""The only place that asks the operating system: processes, GPUs, memory devices, files, the page cache.

An unknown figure is None, never 0. A question that may hang has a bound (`bounded_questions`).
"""
