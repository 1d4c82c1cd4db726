"""The runtime: requests, blocks, the scheduler, the model runner and the loops that drive them."""
