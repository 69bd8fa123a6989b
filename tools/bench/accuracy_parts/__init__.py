"""Parts of `tools/bench/accuracy.py`; all but `ours.py` need only torch, numpy and Pillow beside the peer itself."""
