"""Kafka: consumer group, fetching and parsing, transactions, changelog, results, diagnosis.

All that knows kafka-python stands here; its private parts are named in `client_internals` alone.
"""
