"""The network and how it learns: pure functions and modules on arrays. Knows neither `detector` nor `connectors`."""
