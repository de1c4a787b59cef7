"""Files in object stores: their names, what they hold by ranges of bytes, and writing whole objects."""
