"""The dry measurement in a short process of its own: `python -m backends.footprint.probe.measure`.

Only `measure` is run; `native` and `projector` are its parts. Nothing else imports them.
"""
