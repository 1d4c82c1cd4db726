import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt.errors import CheckpointError, OutputError, QuantizationError, UsageError
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.quantized import QuantSpec
from llmopt.formats.weights import FormatName, choose_format
from llmopt.layers.linear import DenseLinear
from llmopt.models.config import ModelConfig
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.gptq import GPTQOptions
from llmopt.quantize.layout import block_modules
from llmopt.quantize.options import (
    ModuleFinished,
    ModuleRecord,
    QuantizedModule,
    QuantizeOptions,
    QuantizeSummary,
    ReplacedTensor,
    SilentObserver,
)
from llmopt.quantize.output import verify, write_checkpoint
from llmopt.quantize.packing import PackedBlock, pack_block
from llmopt.quantize.pipeline import quantize_checkpoint
from llmopt.quantize.rtn import quantize_rtn
from llmopt.quantize.scheme import UniformMethod as Method
from llmopt_kernels.paged_attention import AttentionMetadata

SPEC = QuantSpec(4, 32)
PREFIX = "model.layers.1.mlp"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def calibration() -> CalibrationData:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 128, (8, 64), generator=generator)
    return CalibrationData(tokens, "random", "0" * 64, 0)


@pytest.fixture(scope="module")
def source(make_tiny_llama: Callable[..., Path]) -> Path:
    """A tied, bf16 checkpoint with tokenizer files, the shape of the default model in small."""
    path = make_tiny_llama(tie_word_embeddings=True, attention_bias=True)
    weights = load_file(path / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(halves, path / "model.safetensors", metadata={"format": "pt"})
    (path / "tokenizer.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def results(
    source: Path, calibration: CalibrationData, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, QuantizeSummary]:
    out = tmp_path_factory.mktemp("quantized")
    methods: tuple[Method, ...] = ("rtn", "gptq")
    return {
        method: quantize_checkpoint(
            source, out / method, QuantizeOptions(method, SPEC, calibration)
        )
        for method in methods
    }


def hidden_states(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    windows, length = tokens.shape
    positions = torch.arange(length).repeat(windows)
    metadata = AttentionMetadata.dense((length,) * windows)
    return model.forward(tokens.flatten(), positions, metadata)


def directory_bytes(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in path.iterdir() if f.name != "quantization-run.json"}


def copy_with(source: Path, target: Path, tensors: dict[str, torch.Tensor]) -> Path:
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    save_file({**weights, **tensors}, target / "model.safetensors")
    return target


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_output_is_a_standard_gptq_checkpoint(
    results: dict[str, QuantizeSummary], source: Path, method: str
) -> None:
    out = results[method].out
    reader, original = CheckpointReader(out), CheckpointReader(source)
    config = reader.config["quantization_config"]
    assert config == json.loads((out / "quantize_config.json").read_text())
    expected = ("gptq", "gptq", 4, 32, True, False)
    keys = ("quant_method", "checkpoint_format", "bits", "group_size", "sym", "desc_act")
    assert tuple(config[key] for key in keys) == expected
    assert reader.shape(f"{PREFIX}.down_proj.qweight") == (96 // 8, 64)
    assert reader.shape(f"{PREFIX}.down_proj.qzeros") == (3, 64 // 8)
    assert reader.tensor(f"{PREFIX}.down_proj.qzeros").unique().tolist() == [0x77777777]
    assert reader.tensor(f"{PREFIX}.down_proj.scales").dtype == torch.float16
    assert f"{PREFIX}.down_proj.weight" not in reader
    assert {k: v for k, v in reader.config.items() if k != "quantization_config"} == original.config
    assert (out / "tokenizer.json").read_text() == "{}"
    assert (out / "generation_config.json").exists()


def test_everything_else_is_copied_bit_for_bit(
    results: dict[str, QuantizeSummary], source: Path
) -> None:
    reader, original = CheckpointReader(results["gptq"].out), CheckpointReader(source)
    copied = [name for name in original.names() if name in reader]
    assert "model.embed_tokens.weight" in copied
    assert "model.layers.0.self_attn.q_proj.bias" in copied
    assert "model.layers.1.input_layernorm.weight" in copied
    for name in copied:
        assert reader.dtype(name) == torch.bfloat16
        assert torch.equal(reader.tensor(name), original.tensor(name))


def test_rtn_output_holds_the_rounded_weights(
    results: dict[str, QuantizeSummary], source: Path
) -> None:
    original = CheckpointReader(source)
    loaded = load_model(results["rtn"].out, dtype="float32")
    parts = [original.tensor(f"{PREFIX}.{name}_proj.weight") for name in ("gate", "up")]
    gate_up = loaded.blocks[1].mlp.gate_up
    assert isinstance(gate_up, DenseLinear)
    assert torch.equal(gate_up.weight, quantize_rtn(torch.cat(parts), SPEC).dequantize())


def test_gptq_changes_the_model_less_than_rtn(
    results: dict[str, QuantizeSummary], source: Path, calibration: CalibrationData
) -> None:
    base = hidden_states(load_model(source, dtype="float32"), calibration.tokens)
    error = {
        method: float(
            (hidden_states(load_model(summary.out, dtype="float32"), calibration.tokens) - base)
            .square()
            .mean()
        )
        for method, summary in results.items()
    }
    assert error["gptq"] < 0.7 * error["rtn"]


def test_recorded_losses_are_those_of_inputs_from_the_quantized_prefix(
    results: dict[str, QuantizeSummary], source: Path, calibration: CalibrationData
) -> None:
    """Run the written model, and compare each layer with the original on the inputs it gets."""
    original = load_model(source, dtype="float32")
    quantized = load_model(results["gptq"].out, dtype="float32")
    losses: list[float] = []

    class Compare(DenseLinear):
        def __init__(self, exact: DenseLinear, rounded: DenseLinear) -> None:
            super().__init__(rounded.weight, rounded.bias)
            self._exact = exact

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            out = super().__call__(x)
            losses.append(float((self._exact(x) - out).square().mean()))
            return out

    for exact, rounded in zip(original.blocks, quantized.blocks, strict=True):
        pairs = zip(exact.linears, rounded.linears, strict=True)
        compared = [
            Compare(e, r)
            for e, r in pairs
            if isinstance(e, DenseLinear) and isinstance(r, DenseLinear)
        ]
        rounded.attention.qkv, rounded.attention.output = compared[:2]
        rounded.mlp.gate_up, rounded.mlp.down = compared[2:]
    hidden_states(quantized, calibration.tokens)
    records = {record.name: record.loss for record in results["gptq"].modules}
    for block in (0, 1):
        for index, module in ((1, "self_attn.o_proj"), (3, "mlp.down_proj")):
            recorded = records[f"model.layers.{block}.{module}"]
            assert recorded == pytest.approx(losses[4 * block + index], rel=2e-3)


def test_summary_and_record_file_agree(results: dict[str, QuantizeSummary]) -> None:
    summary = results["gptq"]
    record = json.loads((summary.out / "quantization.json").read_text())
    assert record["scheme"] == "gptq-w4g32"
    assert record["calibration"]["num_samples"] == 8
    assert len(record["source"]["sha256"]) == 64
    assert [m["name"] for m in record["modules"]] == [m.name for m in summary.modules]
    assert len(summary.modules) == 14
    assert all(m.damping == 0.01 and m.dead_columns == 0 for m in summary.modules)
    assert all(m.relative_loss is not None and 0 < m.relative_loss < 0.1 for m in summary.modules)
    # 4-bit codes, a float16 scale and a 4-bit zero for 32 of them, an int32 g_idx per column
    assert 4 + 20 / 32 < summary.bits_per_weight < 4 + 20 / 32 + 1.0
    assert summary.file_bytes == (summary.out / "model.safetensors").stat().st_size


def test_rtn_records_have_no_calibration(results: dict[str, QuantizeSummary]) -> None:
    record = json.loads((results["rtn"].out / "quantization.json").read_text())
    assert record["calibration"] is None
    assert record["gptq"] is None
    assert all(module["loss"] is None for module in record["modules"])


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_same_inputs_give_the_same_bytes(
    results: dict[str, QuantizeSummary],
    source: Path,
    calibration: CalibrationData,
    tmp_path: Path,
    method: Method,
) -> None:
    options = QuantizeOptions(method, SPEC, calibration)
    again = quantize_checkpoint(source, tmp_path / "again", options)
    assert directory_bytes(again.out) == directory_bytes(results[method].out)


def test_eight_bits_per_channel_are_nearly_lossless(
    source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    options = QuantizeOptions("gptq", QuantSpec(8, None), calibration)
    summary = quantize_checkpoint(source, tmp_path / "w8", options)
    assert CheckpointReader(summary.out).config["quantization_config"]["group_size"] == -1
    base = hidden_states(load_model(source, dtype="float32"), calibration.tokens)
    found = hidden_states(load_model(summary.out, dtype="float32"), calibration.tokens)
    assert (found - base).square().mean() < 1e-3 * base.square().mean()


class Recorder(SilentObserver):
    def __init__(self) -> None:
        self.modules: list[ModuleFinished] = []

    def module_finished(self, event: ModuleFinished) -> None:
        self.modules.append(event)


def test_progress_names_every_module_in_order(
    source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    seen = Recorder()
    options = QuantizeOptions("gptq", SPEC, calibration)
    quantize_checkpoint(source, tmp_path / "out", options, observer=seen)
    assert len(seen.modules) == 14
    first, last = seen.modules[0], seen.modules[-1]
    assert (first.scheme, first.block, first.num_blocks) == ("gptq-w4g32", 0, 2)
    assert first.record.name == "model.layers.0.self_attn.q_proj"
    assert (last.block, last.record.name) == (1, "model.layers.1.mlp.down_proj")
    assert all(event.record.loss is not None for event in seen.modules)


@pytest.mark.parametrize("block", [0, 1])
def test_interrupting_leaves_no_output(
    source: Path, calibration: CalibrationData, tmp_path: Path, block: int
) -> None:
    class Interrupting(SilentObserver):
        def module_finished(self, event: ModuleFinished) -> None:
            if event.block == block:
                raise KeyboardInterrupt

    options = QuantizeOptions("gptq", SPEC, calibration)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, tmp_path / "out", options, observer=Interrupting())
    kept = [".out.resume"] if block else []  # nothing is kept where nothing was finished
    assert [path.name for path in tmp_path.iterdir()] == kept


def test_impossible_group_size_is_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        QuantizationError, match=r"group size 48 .*64 inputs.*fit every layer: 32 or"
    ):
        quantize_checkpoint(source, tmp_path / "out", QuantizeOptions("rtn", QuantSpec(4, 48)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("gptq", QuantSpec(4, 32, symmetric=False)),
        ("awq", QuantSpec(4, 32)),
        ("awq", QuantSpec(4, 32, symmetric=False)),
        ("compressed-tensors", QuantSpec(4, 32)),
        ("compressed-tensors", QuantSpec(8, None, symmetric=False)),
    ],
)
def test_every_format_holds_the_same_model(
    source: Path,
    calibration: CalibrationData,
    tmp_path: Path,
    method: Method,
    name: FormatName,
    spec: QuantSpec,
) -> None:
    """A checkpoint in any format computes what the one in GPTQ's computes."""
    out: dict[str, torch.Tensor] = {}
    for stored_as in ("gptq", name):
        options = QuantizeOptions(method, spec, calibration, format=stored_as)
        summary = quantize_checkpoint(source, tmp_path / f"{stored_as}-{len(out)}", options)
        model = load_model(summary.out, dtype="float32")
        out[stored_as] = hidden_states(model, calibration.tokens[:1])
    record = json.loads((summary.out / "quantization.json").read_text())
    assert (record["format"], record["scheme"]) == (name, spec.label(method))
    assert CheckpointReader(summary.out).config["quantization_config"]["quant_method"] == name
    assert (summary.out / "quantize_config.json").exists() == (name == "gptq")
    assert torch.equal(out["gptq"], out[name])


def test_asymmetric_grids_fit_better(
    results: dict[str, QuantizeSummary], source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    options = QuantizeOptions("gptq", QuantSpec(4, 32, symmetric=False), calibration)
    asymmetric = quantize_checkpoint(source, tmp_path / "out", options)
    total = sum(module.loss or 0.0 for module in asymmetric.modules)
    assert total < sum(module.loss or 0.0 for module in results["gptq"].modules)


def test_a_format_that_cannot_hold_the_weights_is_refused_before_any_work(
    tmp_path: Path,
) -> None:
    options = QuantizeOptions("rtn", QuantSpec(8, 32), format="awq")
    with pytest.raises(QuantizationError, match=r"awq .*not weights-w8g32.*gptq, compressed"):
        quantize_checkpoint(tmp_path / "no source is looked at", tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def rounded_modules(reader: CheckpointReader) -> list[QuantizedModule]:
    config = ModelConfig.from_hf(reader.config)
    names = [n for i in (0, 1) for layer in block_modules(config, i) for n in layer.parts]
    return [
        QuantizedModule(
            quantize_rtn(reader.tensor(f"{name}.weight"), SPEC), ModuleRecord(name, 4, 32, "w4")
        )
        for name in names
    ]


def write_replaced(source: Path, out: Path, norm: torch.Tensor) -> PackedBlock:
    reader = CheckpointReader(source)
    stored = choose_format("gptq", SPEC)
    block = pack_block(stored, [*rounded_modules(reader), ReplacedTensor(NORM, norm)])
    with CheckpointWriter(out) as writer:
        write_checkpoint(writer, stored, "rtn", reader, [block])
    return block


def test_a_replaced_tensor_is_written_instead_of_the_source(source: Path, tmp_path: Path) -> None:
    norm = torch.full((64,), 0.5, dtype=torch.bfloat16)
    write_replaced(source, tmp_path / "out", norm)
    reader, original = CheckpointReader(tmp_path / "out"), CheckpointReader(source)
    assert torch.equal(reader.tensor(NORM), norm)
    untouched = NORM.replace("layers.1", "layers.0")
    assert torch.equal(reader.tensor(untouched), original.tensor(untouched))
    load_model(tmp_path / "out")


def test_read_back_notices_another_replacement(source: Path, tmp_path: Path) -> None:
    norm = torch.full((64,), 0.5, dtype=torch.bfloat16)
    block = write_replaced(source, tmp_path / "out", norm)
    damaged = copy_with(tmp_path / "out", tmp_path / "damaged", {NORM: norm + 1})
    with pytest.raises(OutputError, match=r"layers\.1\.input_layernorm.* does not read back"):
        verify(CheckpointReader(damaged), CheckpointReader(source), [block])


def test_a_replacement_that_is_not_finite_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=rf"the new {NORM}"):
        write_replaced(source, tmp_path / "out", torch.full((64,), float("nan")))
    assert list(tmp_path.iterdir()) == []


def test_quantized_source_is_refused(results: dict[str, QuantizeSummary], tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"quantized already \(gptq\)"):
        quantize_checkpoint(results["rtn"].out, tmp_path / "out", QuantizeOptions("rtn", SPEC))


def test_gptq_without_calibration_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="calibration"):
        quantize_checkpoint(source, tmp_path / "out", QuantizeOptions("gptq", SPEC))


def test_existing_output_is_refused_and_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="exists already"):
        quantize_checkpoint(source, tmp_path, QuantizeOptions("rtn", SPEC))
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_nan_weight_is_refused_by_name(
    source: Path, calibration: CalibrationData, tmp_path: Path, method: Method
) -> None:
    name = f"{PREFIX}.down_proj.weight"
    broken = load_file(source / "model.safetensors")[name]
    broken[3, 5] = float("nan")
    damaged = copy_with(source, tmp_path / "damaged", {name: broken})
    options = QuantizeOptions(method, SPEC, calibration)
    with pytest.raises(QuantizationError, match=rf"^{PREFIX}.down.* 1 NaN"):
        quantize_checkpoint(damaged, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_activations_that_overflow_are_refused(
    source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    name = "model.layers.1.input_layernorm.weight"
    damaged = copy_with(source, tmp_path / "damaged", {name: torch.full((64,), float("inf"))})
    with pytest.raises(QuantizationError, match=r"the input of model\.layers\.1\.self_attn\.qkv"):
        quantize_checkpoint(damaged, tmp_path / "out", QuantizeOptions("gptq", SPEC, calibration))


def test_missing_tensor_is_a_checkpoint_error(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "partial")
    weights = load_file(source / "model.safetensors")
    del weights[f"{PREFIX}.up_proj.weight"]
    save_file(weights, tmp_path / "partial" / "model.safetensors")
    with pytest.raises(CheckpointError, match="up_proj"):
        quantize_checkpoint(tmp_path / "partial", tmp_path / "out", QuantizeOptions("rtn", SPEC))


def test_read_back_notices_other_codes(results: dict[str, QuantizeSummary], source: Path) -> None:
    """What GPTQ wrote is not what plain rounding intended, so verification must fail."""
    reader = CheckpointReader(source)
    block = pack_block(choose_format("gptq", SPEC), rounded_modules(reader))
    verify(CheckpointReader(results["rtn"].out), reader, [block])
    with pytest.raises(OutputError, match="does not read back"):
        verify(CheckpointReader(results["gptq"].out), reader, [block])


def test_min_max_option_reaches_the_loop(
    results: dict[str, QuantizeSummary], source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    options = QuantizeOptions("gptq", SPEC, calibration, GPTQOptions(scale_search=False))
    plain = quantize_checkpoint(source, tmp_path / "plain", options)
    searched = sum(module.loss or 0.0 for module in results["gptq"].modules)
    assert searched < sum(module.loss or 0.0 for module in plain.modules)
