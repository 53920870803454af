"""Property tests: the same examples for the same commit, since they decide what is merged; others when asked for.

``pytest --hypothesis-profile=search`` looks for new ones.
"""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile("repeatable")
