"""How a network learns: truncated BPTT, optimisers, penalties, readout. Stands on `network`."""
