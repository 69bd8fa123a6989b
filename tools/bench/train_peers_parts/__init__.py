"""The peers of `train_peers.py`."""
