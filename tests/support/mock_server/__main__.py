"""Run the mock: `python -m mock_server [--port N] [--ready-after S] [--models JSON]`.

Prints its address on one line when it listens; ends with the process that started it.
"""

import argparse
import asyncio
import gc
import json
import os

from .behaviour import Behaviour
from .server import MockServer


async def main() -> None:
    parent = os.getppid()
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--models", type=json.loads, default={"mock": {}})
    options = parser.parse_args()
    models = {name: Behaviour(**fields) for name, fields in options.models.items()}
    mock = MockServer(models, options.ready_after)
    server = await asyncio.start_server(
        mock.connected, "127.0.0.1", options.port, limit=1 << 24, backlog=4096
    )
    gc.freeze()
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    while os.getppid() == parent:  # whoever started it may be killed without stopping it
        await asyncio.sleep(1.0)


asyncio.run(main())
