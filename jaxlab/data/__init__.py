"""Data sets as pure functions of (seed, step), one file each, registered under kind "data".

`base.py` has the protocol. A data set's own file finds its content and splits it; `images.py` and
`byte_windows.py` make the batches.
"""
