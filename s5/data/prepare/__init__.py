"""Turn datasets as their providers ship them into patches, index masks and split files.

Each dataset is one module with a :class:`~s5.data.prepare.recipe.Recipe`: it finds the source files and says
how one of them is cut. What is common lies beside it: window arithmetic (``patches``), the journal of
finished source files (``journal``), worker processes (``parallel``) and the order of events (``pipeline``);
for labeled datasets with training and validation parts also folders and lists (``dataset``), masks of any
kind (``masks``) and files in zip archives (``archives``, ``archived``). To add a dataset, write its module
and name its recipe in ``__main__.RECIPES``.
"""
