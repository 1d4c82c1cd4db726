"""`llmopt quantize`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """Checkpoint formats."""

    GPTQ = "gptq"
    AWQ = "awq"
    COMPRESSED_TENSORS = "compressed-tensors"


class Method(StrEnum):
    """Quantization methods."""

    RTN = "rtn"
    GPTQ = "gptq"
    QRONOS = "qronos"
    AWQ = "awq"
    AWQ_GPTQ = "awq+gptq"
    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"
    W8A16 = "w8a16"
    W8A8 = "w8a8"
    FP8 = "fp8"
    GGUF = "gguf"


def quantize(
    model: Annotated[str, typer.Argument(help="Directory, hub id, or `smollm2-135m`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to create.")],
    method: Annotated[Method, typer.Option(help="How codes are chosen.")] = Method.GPTQ,
    bits: Annotated[
        int | None,
        typer.Option(help="Bits per weight of rtn, gptq, qronos, awq: 2, 3, 4, 8 [4]."),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale [64]; -1: one scale per output channel."),
    ] = None,
    asymmetric: Annotated[
        bool,
        typer.Option(
            "--asymmetric",
            help="Give every group a zero point of its own (GPTQ: version 2, for fewer readers).",
        ),
    ] = False,
    double_quant: Annotated[
        bool, typer.Option("--double-quant", help="Quantize the scales of nf4 and fp4 too.")
    ] = False,
    mix: Annotated[str | None, typer.Option(help="Block types of gguf, such as q4_k_m.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Several schemes from one pass, each in a directory below OUT: "
            "gptq-w4g64,awq-w4g64-asym,nf4,int8."
        ),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(help="How rtn, gptq, qronos and awq are stored [what most engines read]."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            help="Other settings for modules: `*.down_proj=bits:8,group:32`, `*.0.*=skip`. "
            "The last match wins."
        ),
    ] = None,
    lm_head: Annotated[
        bool,
        typer.Option(
            "--lm-head",
            help="Quantize the output head too, where it is not tied to the embedding (formats "
            "gptq and compressed-tensors; gguf always does).",
        ),
    ] = False,
    gguf_pre: Annotated[
        str | None,
        typer.Option(help="llama.cpp's name of the pre-tokenizer, where it is not recognized."),
    ] = None,
    propagate: Annotated[
        bool,
        typer.Option(
            help="Calibrate gptq and awq on what the quantized blocks before put out, not on the "
            "original model's statistics, which all methods share."
        ),
    ] = True,
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration",
            "--text",
            help="bundled, self (text from the model), a text file, FILE.jsonl[:FIELD] or "
            "hub:OWNER/NAME.",
        ),
    ] = "bundled",
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 32,
    sample_tokens: Annotated[int, typer.Option(help="Tokens per calibration sample.")] = 512,
    damping: Annotated[
        float, typer.Option(help="Share of the mean Hessian diagonal that GPTQ adds to it.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Chooses the calibration windows.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    engine: Annotated[
        str,
        typer.Option(
            help="Who quantizes: llmopt, or in an environment of its own (`llmopt backend "
            "install NAME`) gptqmodel, bitsandbytes, llm-compressor, autoawq, auto-gptq, llama.cpp."
        ),
    ] = "llmopt",
    cache: Annotated[
        bool, typer.Option(help="Keep shared statistics for later runs ($LLMOPT_CACHE).")
    ] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop what an interrupted other run had finished.")
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Do the first block only, and say what time, memory and disk the rest would take. "
            "For a directory with no more than config.json: memory and disk.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Quantize a model's linear layers into a checkpoint that other engines load.

    Every finished block is kept on disk: after an interruption, the same command goes on.

    Examples:

        llmopt quantize smollm2-135m --bits 4 --group-size 64 --out smollm2-w4

        llmopt quantize ./my-model --method nf4 --double-quant --out my-model-nf4

        llmopt quantize ./my-model --methods gptq-w4g128,awq-w4g128-asym,fp8 --out my-models

        llmopt quantize ./my-model --method gguf --mix q4_k_m --out my-model-gguf --plan
    """
    from llmopt.cli.quantize_command import Calibration, Choice, Command, run

    choice = Choice(method.value, bits, group_size, not asymmetric, double_quant, mix, methods)
    run(
        Command(
            model=model,
            out=out,
            choice=choice,
            format=None if format is None else format.value,
            overrides=tuple(override or ()),
            lm_head=lm_head,
            gguf_pre=gguf_pre,
            propagate=propagate,
            damping=damping,
            calibration=Calibration(calibration, samples, sample_tokens, seed),
            device=device,
            engine=engine,
            cache=cache,
            restart=restart,
            plan=plan,
            json=json,
        )
    )
