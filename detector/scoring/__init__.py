"""From an observation and its forecast to an alert: compiled functions on arrays and records, no Python per event.

In the order in which an event passes them: `admission`, who is let in; `lane` with `channels/`, by how much each
feature is off; `units`, in units of what is usual for it; `return_period` and `claims`, how rare that is for the
stream, by channel; `news`, whether it was told already; `threshold` and `incidents`, whether it is an alert; `explain`,
the numbers of its sentence. `judge` is the scan that takes a batch through all of it, `batch` the columns that it takes
and writes. Symbols have their own measure (`symbols`, `symbol_periods`), and are one channel more.
"""
