"""The channels: what a stream can be found odd by, each a file. May import `units`, `return_period` and `student` only.

A channel's file has what is remembered for it of a lane, and a compiled function that measures one event against that
and then learns it. What it measured is a size, which `units` compares with the usual, or already a claim: log10 of the
events between such. `scoring.claims` makes severities and claims of them.
"""
