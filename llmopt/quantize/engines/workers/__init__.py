"""Scripts that run in the environments of others: each knows one engine and the standard library.

`run_job.py` is started with a job file and calls `quantize(job)` of the script that the job names.
None of them is imported by llmopt.
"""
