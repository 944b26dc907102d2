"""The dry measurement in its own short-lived process: `python -m backends.footprint.probe.measure`.

Only `measure` is run; `native` and `projector` are its parts. Nothing else imports them.
"""
