"""Turn datasets as their providers ship them into patches, index masks and split files.

Composition: a dataset of :mod:`s5.data.datasets` finds its files, `masks` or `objects` say how one of them is
cut and which lists are written, and `pipeline` runs such a plan: skip what the `journal` has, cut the rest in
`parallel`, write the lists. `labeled` and `unlabeled` make plans of a user's own folders. `patches` has the
arithmetic of windows.
"""
