"""`python -m s5.doctor`: says on one page whether training can work here, and what to do if not.

Nothing that may be broken is imported outside a check, and the checks run in a process of their own: an
environment without PyTorch, or with one that crashes, still gets its page.
"""
