from pathlib import Path
from types import SimpleNamespace

import pytest

from llmopt.bench.loaded import LoadedModels
from llmopt.errors import CheckpointError
from llmopt.models.loader import load_model


class CountingLoader:
    def __init__(self) -> None:
        self.loads: list[tuple[Path, str]] = []
        self.activations: list[str] = []

    def __call__(self, path, dtype, activations):
        self.loads.append((path, dtype))
        self.activations.append(activations)
        return load_model(path, dtype=dtype, activations=activations)


@pytest.fixture
def loader():
    return CountingLoader()


def test_models_that_fit_are_loaded_once(tiny_llama, loader):
    models = LoadedModels(10**9, loader)
    first = models.get(tiny_llama, "float32")
    models.get(tiny_llama, "bfloat16")
    assert models.get(tiny_llama, "float32") is first
    assert loader.loads == [(tiny_llama, "float32"), (tiny_llama, "bfloat16")]


def test_models_of_other_activations_are_others(tiny_llama, loader):
    models = LoadedModels(10**9, loader)
    plain = models.get(tiny_llama, "bfloat16")
    exact = models.get(tiny_llama, "bfloat16", "bf16")
    assert models.get(tiny_llama, "bfloat16", "auto") is plain is not exact
    assert loader.activations == ["auto", "bf16"]


def test_the_one_used_longest_ago_goes_first(make_tiny_llama, loader):
    a, b, c = (make_tiny_llama(seed=seed) for seed in (1, 2, 3))
    model_bytes = load_model(a, dtype="float32").weight_bytes
    models = LoadedModels(int(2.9 * model_bytes), loader)
    for path in (a, b, a, c, a):  # c takes the place of b
        models.get(path, "float32")
    assert [path for path, _ in loader.loads] == [a, b, c]
    models.get(b, "float32")
    assert [path for path, _ in loader.loads] == [a, b, c, b]


def test_a_model_beyond_the_budget_is_served_alone(make_tiny_llama, loader):
    a, b = (make_tiny_llama(seed=seed) for seed in (1, 2))
    models = LoadedModels(1, loader)
    assert models.get(a, "float32") is models.get(a, "float32")
    models.get(b, "float32")
    models.get(a, "float32")
    assert [path for path, _ in loader.loads] == [a, b, a]


def test_an_output_head_that_is_the_embedding_is_counted_once(make_tiny_llama, loader):
    a, b = (make_tiny_llama(seed=seed, tie_word_embeddings=True) for seed in (1, 2))
    model = load_model(a, dtype="float32")
    models = LoadedModels(2 * model.weight_bytes + model.embedding.nbytes // 2, loader)
    for path in (a, b, a):
        models.get(path, "float32")
    assert [path for path, _ in loader.loads] == [a, b]


def test_a_failed_load_keeps_the_others(tiny_llama, loader, tmp_path):
    models = LoadedModels(10**9, loader)
    first = models.get(tiny_llama, "float32")
    with pytest.raises(CheckpointError):
        models.get(tmp_path, "float32")
    assert models.get(tiny_llama, "float32") is first


def test_budget_is_half_of_the_free_memory(make_tiny_llama, monkeypatch):
    a, b = (make_tiny_llama(seed=seed) for seed in (1, 2))
    model_bytes = load_model(a, dtype="float32").weight_bytes

    def models_with(free_bytes):
        free = SimpleNamespace(available=free_bytes)
        monkeypatch.setattr("llmopt.bench.loaded.psutil.virtual_memory", lambda: free)
        return LoadedModels.on("cpu")

    roomy, tight = models_with(5 * model_bytes), models_with(3 * model_bytes)
    for models in (roomy, tight):
        models.get(a, "float32")
        models.get(b, "float32")
    assert roomy.get(a, "float32") is roomy.get(a, "float32")
    first = tight.get(a, "float32")
    tight.get(b, "float32")
    assert tight.get(a, "float32") is not first


def test_memory_is_left_to_others_as_far_as_models_can_give_it(
    make_tiny_llama, loader, monkeypatch
):
    a, b = (make_tiny_llama(seed=seed) for seed in (1, 2))
    models = LoadedModels(10**9, loader)
    models.get(a, "float32")
    models.get(b, "float32")
    free = iter([10, 30, 10, 10])
    monkeypatch.setattr(
        "llmopt.bench.loaded.psutil.virtual_memory", lambda: SimpleNamespace(available=next(free))
    )
    models.leave_free(20)
    models.get(b, "float32")
    assert [path for path, _ in loader.loads] == [a, b]
    models.leave_free(20)
    models.get(b, "float32")
    assert [path for path, _ in loader.loads] == [a, b, b]
