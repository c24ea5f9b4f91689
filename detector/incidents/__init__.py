"""What breaks together: alerts of many streams as incidents, remembered on disk, and told to people.

May use the settings, the words for a reader, and `connectors`; knows neither the engine nor the daemon.
"""
