"""A record as it comes from a poll, in place of the client's own larger object."""

RawRecord = tuple[int, int, bytes | None, bytes | None]  # offset, timestamp in ms (-1: none), key, value
