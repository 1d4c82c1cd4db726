"""The portability table against the engine's own declarations, where the engine is installed."""

import pytest

from llmopt.formats.portability_rules import READERS, Kernel

pytestmark = [
    pytest.mark.gptqmodel,
    pytest.mark.filterwarnings("ignore"),  # gptqmodel and its dependencies warn at import
]
CLASSES = {
    ("gptq", "Marlin"): "marlin.MarlinLinear",
    ("gptq", "ExLlamaV2"): "exllamav2.ExllamaV2Linear",
    ("gptq", "Triton"): "tritonv2.TritonV2Linear",
    ("gptq", "Torch"): "torch.TorchLinear",
    ("awq", "Marlin"): "marlin_awq.AwqMarlinLinear",
    ("awq", "ExLlamaV2"): "exllamav2_awq.AwqExllamaV2Linear",
    ("awq", "Torch"): "torch_awq.AwqTorchLinear",
}


@pytest.mark.parametrize(("storage", "kernel"), list(CLASSES))
def test_gptqmodel_declares_what_the_table_says(storage: str, kernel: str) -> None:
    from importlib import import_module

    module, _, name = CLASSES[storage, kernel].partition(".")
    declared = getattr(import_module(f"gptqmodel.nn_modules.qlinear.{module}"), name)
    (ours,) = [k for k in kernels_of(storage) if k.name == kernel]
    assert set(ours.bits) <= set(declared.SUPPORTS_BITS)
    assert set(ours.zeros) <= {not symmetric for symmetric in declared.SUPPORTS_SYM}
    for size in ours.group_sizes or ():
        assert (-1 if size is None else size) in declared.SUPPORTS_GROUP_SIZE
    (tile,) = ours.tiles
    assert all(tile[0] % n == 0 for n in declared.SUPPORTS_OUT_FEATURES_DIVISIBLE_BY)
    assert all(tile[1] % n == 0 for n in declared.SUPPORTS_IN_FEATURES_DIVISIBLE_BY)


def kernels_of(storage: str) -> tuple[Kernel, ...]:
    return next(r.kernels for (e, s), r in READERS.items() if (e, s) == ("gptqmodel", storage))
