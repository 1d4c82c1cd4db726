"""An engine without a model, for `run_worker.py`: every token is the length of the sequence so far.

Settings: behaviour, what it does wrong; step_s, how long a step of all requests takes; eos, the
token that ends a sequence. What it does wrong as it serves, it does when a request has had two
tokens.
"""

import contextlib
import os
import subprocess
import sys
import time


def load(settings):
    behaviour = settings.get("behaviour", "")
    print("a library prints to standard output", flush=True)
    print("and to standard error", file=sys.stderr, flush=True)
    if behaviour == "fails to load":
        raise ValueError("no such checkpoint")
    if behaviour == "dies as it loads":
        os._exit(7)
    if behaviour == "never ready":
        time.sleep(600)
    return Engine(behaviour, settings)


class Engine:
    version = "1.2.3"

    def __init__(self, behaviour, settings):
        self.behaviour = behaviour
        self.step_s = settings.get("step_s", 0.0)
        self.max_num_seqs = settings["max_num_seqs"]
        self.eos = settings.get("eos")
        self.settings = {"threads_seen": os.environ["OMP_NUM_THREADS"], "child": None}
        if behaviour in ("has a child", "stops answering"):
            self.settings["child"] = subprocess.Popen(["sleep", "600"]).pid
        self.num_steps = 0
        self.num_aborted = 0

    def stats(self):
        return {"num_steps": self.num_steps, "num_aborted": self.num_aborted}

    def serve(self, inbox, send):
        running = {}
        while True:
            for request in inbox.take(self.max_num_seqs - len(running), wait=not running):
                running[request["id"]] = (request, [])
            for number in inbox.aborted():
                self.num_aborted += running.pop(number, None) is not None
            time.sleep(self.step_s)
            self.num_steps += 1
            send([self.step(running, number) for number in list(running)])

    def step(self, running, number):
        request, tokens = running[number]
        if len(tokens) == 2:
            self.misbehave()
            if self.behaviour == "forgets the tokens":
                return {"id": number}
            if self.behaviour == "refuses":
                del running[number]
                return {"id": number, "error": "out of blocks"}
        token = len(request["prompt_token_ids"]) + len(tokens)
        tokens.append(token)
        message = {"id": number, "token_ids": [token]}
        is_end = token == self.eos and not request["ignore_eos"]
        if is_end or len(tokens) == request["max_tokens"]:
            del running[number]
            message["finish_reason"] = "stop" if is_end else "length"
            message["num_prompt_tokens"] = len(request["prompt_token_ids"])
        return message

    def misbehave(self):
        if self.behaviour == "dies":
            print("out of luck", file=sys.stderr, flush=True)
            os._exit(9)
        if self.behaviour == "raises":
            raise RuntimeError("a kernel failed")
        if self.behaviour == "garbles":
            for descriptor in range(3, 10):  # one of them is the pipe to the client
                with contextlib.suppress(OSError):
                    os.write(descriptor, b"Segmentation fault\n")
        if self.behaviour == "stops answering":
            os.kill(os.getpid(), 19)
