"""One file for each command but `run`: the command line calls its `run(settings, options)`. Stands on `service`."""

LOOKAHEAD_NOTE = "They look ahead: for labelling and post-mortems, never for judging a detector."
