"""The view of a run in Perfetto: a Chrome Trace file, its lanes, and the UI that opens it.

`view` makes events of spans, `lanes` keeps slices nested, `file` writes whole events, `perfetto` opens it.
"""
