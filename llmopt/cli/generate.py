"""`llmopt generate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from llmopt.engine.config import KVDtypeName
    from llmopt.engine.llm import LLM
    from llmopt.engine.outputs import RequestOutput
    from llmopt.engine.sampling_params import SamplingParams
    from llmopt.layers.native_linear import WeightActivations


def generate(
    model: Annotated[str, typer.Argument(help="Directory, GGUF file, hub id or `smollm2-135m`.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt; repeat for a batch.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="A text file with one prompt per line.")
    ] = None,
    chat: Annotated[bool, typer.Option(help="Wrap prompts in the model's chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="System prompt, with --chat.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    min_tokens: Annotated[int, typer.Option(help="Nothing stops it before these.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Keep the most likely tokens up to this.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Keep tokens this fraction as likely as the best.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: against what prompt or output have said.")
    ] = 1.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="Against each time that the output said it.")
    ] = 0.0,
    presence_penalty: Annotated[
        float, typer.Option(help="Against what the output has said at all.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Random stream; a fresh one if absent.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text to stop before; repeat for more.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Do not stop at end-of-text.")] = False,
    n: Annotated[int, typer.Option("--n", help="Outputs for each prompt.")] = 1,
    best_of: Annotated[
        int | None, typer.Option(help="Generate this many and show the likeliest n.")
    ] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: each token's, and of this many others.")
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that the output obeys.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="What the whole output matches.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="The output is one of these; repeat.")
    ] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="File with a Lark grammar of the output.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    activations: Annotated[
        str,
        typer.Option(
            help="Before quantized weights on a CPU: int8 (fast), int16, bf16, or auto: int8 where"
            " the weights have fewer than 8 bits, else int16."
        ),
    ] = "auto",
    kv_dtype: Annotated[str, typer.Option(help="Of the cache: auto, fp8 or int8.")] = "auto",
    kv_memory: Annotated[
        str | None, typer.Option(help="For the cache, like 512MiB; a share of what is free.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Most tokens of a prompt and its output.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Most prompts in one step.")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Token budget of a step.")] = 512,
    speculation: Annotated[
        str | None,
        typer.Option(help="ngram, draft:MODEL, self-quantized:4, self-quantized:8 or layers:N."),
    ] = None,
    dummy_weights: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            help="Random weights for a config.json or a model's; of MODEL only the tokenizer.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outputs as JSON.")] = False,
) -> None:
    """Complete prompts with llmopt's own runtime.

    Examples:

        llmopt generate smollm2-135m --chat -p "What is the capital of Japan?"

        llmopt generate ./smollm2-w4 -p "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1

        llmopt generate smollm2-135m -p "Japan or Peru?" --choice Japan --choice Peru
    """
    from llmopt.cli.memory_size import parse_memory_size
    from llmopt.engine.sampling_params import SamplingParams
    from llmopt.errors import UsageError

    prompts = _read_prompts(prompt, prompts_file)
    if logprobs is not None and not json:
        raise UsageError("--logprobs is shown only by --json", "Give --json, or leave it out.")
    if system is not None and not chat:
        raise UsageError("--system needs a chat template", "Give --chat, or leave it out.")
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        n=n,
        best_of=best_of,
        logprobs=logprobs,
        json_schema=None if json_schema is None else _read_text(json_schema),
        regex=regex,
        choice=tuple(choice or ()),
        grammar=None if grammar is None else _read_text(grammar),
    )
    llm = _load(
        model,
        dtype=dtype,
        device=device,
        activations=cast("WeightActivations", activations),
        kv_dtype=cast("KVDtypeName", kv_dtype),
        kv_memory_bytes=None if kv_memory is None else parse_memory_size("--kv-memory", kv_memory),
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        speculation=speculation,
        dummy_weights=dummy_weights,
    )
    _run(llm, prompts, params, chat=chat, system=system, json=json)


def _load(model: str, **settings: Any) -> "LLM":
    from llmopt.cli.progress import StageProgress
    from llmopt.engine.llm import LLM
    from llmopt.models.resolve import resolve_model

    with StageProgress() as progress:
        with progress.stage(f"find {model}") as advance:
            path = resolve_model(model, advance)
        with progress.stage("load it"):
            return LLM(path, **settings)


def _run(
    llm: "LLM",
    prompts: Sequence[str],
    params: "SamplingParams",
    *,
    chat: bool,
    system: str | None,
    json: bool,
) -> None:
    """Generate and print; what there is when it is interrupted is printed too."""
    from llmopt.cli.progress import StageProgress
    from llmopt.engine.chat import encode_conversation, user_turn

    encoded = llm.encode(prompts)
    if chat:
        encoded = [encode_conversation(llm.tokenizer, user_turn(one, system)) for one in prompts]
    _show_fit(llm, encoded, params)
    run = llm.begin(encoded, params)
    most = params.max_tokens * params.num_samples * len(prompts)
    done = 0
    interrupted = False
    try:
        with StageProgress() as progress, progress.stage("generate"):
            for _, delta in run:
                done += len(delta.token_ids)
                progress.stage_advanced(done, most, "tokens")
    except KeyboardInterrupt:
        interrupted = True
    _show(prompts, run.outputs(), chat=chat, json=json)
    _end(run.outputs())
    if interrupted:
        raise KeyboardInterrupt


def _show_fit(llm: "LLM", prompts: Sequence[Sequence[int]], params: "SamplingParams") -> None:
    """Say what fits into memory, and which flag would help if not all prompts run at once."""
    longest = max(map(len, prompts)) + params.max_tokens
    for line in llm.preflight(longest, len(prompts) * params.num_samples).lines:
        typer.echo(line, err=True)


def _show(
    prompts: Sequence[str], outputs: Sequence["RequestOutput"], *, chat: bool, json: bool
) -> None:
    from llmopt.cli.output import print_json

    if json:
        print_json([_plain(output) for output in outputs])
        return
    for text, output in zip(prompts, outputs, strict=True):
        if len(prompts) > 1:
            typer.echo(f">>> {text}")
        for completion in output.completions:
            if len(output.completions) > 1:
                typer.echo(f"--- {completion.index}")
            typer.echo(completion.text if chat else text + completion.text)


def _end(outputs: Sequence["RequestOutput"]) -> None:
    """Exit code 1 if an output had to be given up, which its text does not show."""
    given_up = [
        output.request_id
        for output in outputs
        if any(completion.finish_reason == "error" for completion in output.completions)
    ]
    if given_up:
        typer.echo(
            f"output {', '.join(given_up)} ended early: its constraint got too complex", err=True
        )
        raise typer.Exit(1)


def _plain(output: "RequestOutput") -> dict[str, object]:
    """The output with what its first completion has, for readers who asked for no more."""
    content = dataclasses.asdict(output)
    first = {name: getattr(output, name) for name in ("token_ids", "text", "finish_reason")}
    return {"request_id": output.request_id, **first, **content}


def _read_text(path: Path) -> str:
    from llmopt.errors import UsageError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error})", "Give a UTF-8 text file.") from error


def _read_prompts(prompt: list[str] | None, prompts_file: Path | None) -> list[str]:
    from llmopt.errors import UsageError

    prompts = list(prompt or [])
    if prompts_file is not None:
        prompts += [line for line in _read_text(prompts_file).split("\n") if line.strip()]
    if not prompts:
        raise UsageError("there is no prompt", 'Give --prompt "..." or --prompts-file FILE.')
    return prompts
