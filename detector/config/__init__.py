"""Every setting, and the layers it is read from. Touches the sections of `connectors` and `training` only."""
