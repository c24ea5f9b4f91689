"""Bytes into columns of events (`decoder.Decoder`), with a reason for every record that is rejected.

May import `batches` and `common` only.
"""
