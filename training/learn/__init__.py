"""How a network learns: truncated BPTT (`tbptt.train`), optimisers, scheduled sampling, readout, options (`settings`).

May import `network`.
"""
