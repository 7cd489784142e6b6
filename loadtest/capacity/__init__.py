"""Capacity: from the measured curve of one server to the servers that a traffic needs."""
