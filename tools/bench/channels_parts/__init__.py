"""The arms of `channels.py`."""
