"""One point in the stream made durable, and the way back to it: local store or changelog. Stands on `engine`."""
