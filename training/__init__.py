"""The networks and how they learn: functions and modules on arrays. Knows neither `detector` nor `connectors`."""
