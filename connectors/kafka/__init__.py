"""Kafka: consumer group (`source.KafkaSource`), results (`sinks`, `transactions`), changelog, history, diagnosis.

Only this room knows kafka-python, and only `client_internals` and `record_parser` its private parts. Errors are
explained in `errors`. May import `decode`, `http_client`, `common` and the files at the top of `connectors`.
"""
