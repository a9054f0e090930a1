"""Turn datasets as their providers ship them into patches, index masks and split files.

A dataset of :mod:`s5.data.datasets` finds its files; `segmentation` and `detection` define how an image is
cut and which split files are written, and `own_data` does so for a user's own folders. `pipeline` runs such a
plan: it skips the files that the `journal` lists, cuts the others in parallel, and writes the split files.
`patches` computes the windows.
"""
