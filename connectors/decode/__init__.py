"""Bytes into columns of events (`decoder.Decoder`), with a reason for every record that is refused.

May import `batches` and `common` only.
"""
