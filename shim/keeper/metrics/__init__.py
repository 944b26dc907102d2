"""The keeper's metrics, for Prometheus and for an OpenTelemetry collector.

`publishing` follows the configuration, `instruments` counts what ended, `books_read` is a look at the
books, and `scraping` is the server that Prometheus asks.
"""
