"""`python -m s5.doctor`: a one-page report on whether training can work here, and what to do if not.

Packages that may be broken are imported only inside checks, and the checks run in a separate process: an
environment without PyTorch, or with one that crashes, still gets its page.
"""
