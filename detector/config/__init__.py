"""Every setting: the sections, the sources they are read from, the names that are known and what is said of others.

Touches the settings of `connectors` and `training` only: reading them loads neither numpy nor a client.
"""

CONFIG_VARIABLE = "LONGWATCH_CONFIG"  # names the file where --config does not
