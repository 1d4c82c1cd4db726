"""Scripts that run in the environments of others: each knows one library and nothing of llmopt.

`run_worker.py SCRIPT` talks to the client and calls `load(settings)` of the script. None of them is
imported by llmopt.
"""
