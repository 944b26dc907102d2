"""Files as the operating system has them: written whole, locked, read without trust, in the page cache.

What lies on another machine (`mounts`) or cannot be written now (`unwritten`) is known as such.
"""
